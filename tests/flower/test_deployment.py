"""Real processes on loopback: encrypted, authenticated, killed, stopped and restarted."""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import salf
from salf.aggregation import Corrected
from salf.flower import FederationRecord
from salf.flower.server.federation_folder import FederationFolder
from salf.participation import ObservedReach

EXAMPLES = Path(__file__).parents[2] / "examples" / "flower"
APP = Path(__file__).parent / "deployed"
sys.path[:0] = [str(EXAMPLES), str(APP)]

from deployed.task import a_model, update_of  # noqa: E402 - the path is set above
from local_deployment import LocalDeployment, kill  # noqa: E402 - the path is set above

pytestmark = pytest.mark.slow

DEPTHS = (3, 1)
PATIENCE = 1200.0  # a round takes about seven seconds on a quiet machine; a busy one must not fail
AMPLE = 1800.0  # the deadline of a round that ends when both nodes have replied
GRACE = 10.0
DIGITS: dict[str, Any] = {"num_server_rounds": 1, "local_epochs": 3, "nodes": 2, "deadline_seconds": AMPLE}
SLACK = 2.0  # in which a busy machine notices that a round is over


@contextmanager
def deployed(folder: Path, *, secure: bool = False, separate: bool = False) -> Iterator[LocalDeployment]:
    nodes = [{"depth": depth} for depth in DEPTHS]
    with LocalDeployment(folder / "federation", nodes, secure=secure, separate=separate) as deployment:
        yield deployment


def settings(folder: Path, rounds: int, deadline_seconds: float = AMPLE, nodes: int = 2) -> dict[str, Any]:
    return {
        "num_server_rounds": rounds,
        "folder": folder,
        "deadline_seconds": deadline_seconds,
        "grace_seconds": GRACE,
        "nodes": nodes,
    }


def records_in(folder: Path) -> list[FederationRecord]:
    return FederationFolder(folder).records() if (folder / "records.jsonl").exists() else []


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.2)


def wait_for_round(folder: Path, number: int) -> None:
    wait_for(lambda: len(records_in(folder)) >= number, f"round {number}")


def wait_for_end(deployment: LocalDeployment, folder: Path) -> None:
    model = folder / "model.safetensors"
    wait_for(lambda: model.exists() and not deployment.processes("flwr-serverapp"), "the end of the run")


def check_rounds(folder: Path, rounds: int) -> list[FederationRecord]:
    """Check that every round occurs once and that no round was too long; return the records."""
    records = records_in(folder)
    assert [record.round for record in records] == list(range(1, rounds + 1))
    for record in records:
        assert record.deadline_s is not None
        assert record.seconds <= record.deadline_s + GRACE + SLACK
    return records


def replayed(records: list[FederationRecord]) -> dict[str, Tensor]:
    """Return the weights by plain aggregation, round after round, given which nodes replied."""
    model, layers = a_model()
    state, seen = dict(model.state_dict()), ObservedReach(len(layers))
    for record in records:
        replies = [node for node in range(len(DEPTHS)) if replied(node, record)]
        updates = [update_of(DEPTHS[node], node, record.round, layers, state) for node in replies]
        sampled = [*replies, *(node for node in range(len(DEPTHS)) if node not in replies)][: record.clients]
        if sampled:
            reach = seen.probability(sampled)
            state = salf.aggregate(state, updates, layers, Corrected(), num_clients=len(sampled), reach=reach).state
        depths = [DEPTHS[node] if node in replies else 0 for node in sampled]
        seen = seen.observe(sampled, [[layer >= 3 - depth for layer in range(3)] for depth in depths])
    return state


def replied(node: int, record: FederationRecord) -> bool:
    """Return whether a node's layers are in the model of a round: node 0 sends all layers, node 1 the last one."""
    whole, last = record.contributors[0] == 1, record.contributors[-1]
    return whole if node == 0 else last - whole == 1


def check_weights(folder: Path, records: list[FederationRecord]) -> None:
    made = load_file(folder / "model.safetensors")
    for name, value in replayed(records).items():
        torch.testing.assert_close(made[name], value, rtol=1e-5, atol=1e-6)


def check_undisturbed(folder: Path, rounds: int) -> None:
    """Check that the run ended like an undisturbed one: both nodes in every round, and the weights that follow."""
    records = check_rounds(folder, rounds)
    assert [record.contributors for record in records] == [(1, 1, 2)] * rounds
    check_weights(folder, records)


def check_digits(log: str) -> None:
    """Check the output of the example app: a complete round of both nodes, which raised the accuracy, and its tests."""
    records = [FederationRecord.from_json(line) for line in re.findall(r"└──> (\{.*\})", log)]
    assert [record.contributors for record in records] == [(2, 2, 2, 2)]
    assert "aggregate_evaluate: Received 2 results and 0 failures" in log
    before, after = (float(found) for found in re.findall(r"accuracy ([0-9.]+)", log))
    assert after > before


def test_a_secure_deployment_runs_both_apps_and_refuses_strangers(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds"
    with deployed(tmp_path, secure=True) as deployment:
        strangers = [deployment.start_supernode(0, key=key) for key in (-1, len(DEPTHS))]  # no key, an unregistered one
        deployment.run(APP, **settings(rounds, 2))
        check_digits(deployment.run(EXAMPLES / "after", **DIGITS))
        wait_for(lambda: all(stranger.poll() is not None for stranger in strangers), "the nodes' refusal")
        assert all(stranger.poll() for stranger in strangers)
    assert not deployment.processes()
    check_undisturbed(rounds, 2)


def test_the_app_of_two_lines_trains_on_the_simulation_engine(tmp_path: Path) -> None:
    with LocalDeployment(tmp_path / "federation", [{}, {}], secure=False, simulated=True) as deployment:
        check_digits(deployment.run(EXAMPLES / "after", **DIGITS))
    assert not deployment.processes()


def test_a_stopped_node_comes_back_and_a_killed_one_costs_only_its_layers(tmp_path: Path) -> None:
    rounds, node = tmp_path / "rounds", 1

    def wait_for_node(*, present: bool, after: int) -> None:
        found = lambda: any(replied(node, record) is present for record in records_in(rounds)[after:])  # noqa: E731
        wait_for(found, f"a round {'with' if present else 'without'} the node")

    with deployed(tmp_path) as deployment:
        deployment.run(APP, **settings(rounds, 1))
        (rounds / "model.safetensors").unlink()
        [first] = records_in(rounds)
        deployment.begin(APP, **settings(rounds, 6, deadline_seconds=2 * first.seconds, nodes=1))
        deployment.supernodes[node].send_signal(signal.SIGSTOP)
        wait_for_node(present=False, after=1)
        deployment.supernodes[node].send_signal(signal.SIGCONT)
        missed = len(records_in(rounds))
        wait_for_node(present=True, after=missed)
        deployment.supernodes[node].send_signal(signal.SIGKILL)
        killed = len(records_in(rounds))
        wait_for_end(deployment, rounds)
    records = check_rounds(rounds, 6)
    assert sum(record.missing + record.failed for record in records[killed:]) >= 1
    assert not any(replied(node, record) for record in records[killed + 1 :])
    check_weights(rounds, records)


def test_a_run_survives_the_server_app_the_superlink_and_the_machine(tmp_path: Path) -> None:
    """After the SuperLink alone has died, its server app goes on for a while; the next one waits for the folder."""
    rounds = tmp_path / "rounds"
    with deployed(tmp_path) as deployment:
        deployment.begin(APP, **settings(rounds, 4))
        wait_for_round(rounds, 1)
        kill_server_app(deployment)
        deployment.begin(APP, **settings(rounds, 4))
        wait_for_round(rounds, 2)
        kill_superlink(deployment)
        deployment.start_superlink()
        deployment.begin(APP, **settings(rounds, 4))
        wait_for_round(rounds, 3)
        kill_superlink(deployment)
        kill_server_app(deployment)
        deployment.start_superlink()
        deployment.run(APP, **settings(rounds, 4))
    check_undisturbed(rounds, 4)


def test_a_server_app_of_a_separate_superexec_survives_the_superlink(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds"
    with deployed(tmp_path, separate=True) as deployment:
        deployment.begin(APP, **settings(rounds, 2))
        wait_for_round(rounds, 1)
        kill_superlink(deployment)
        deployment.start_superlink()
        wait_for_end(deployment, rounds)
    check_undisturbed(rounds, 2)


def kill_superlink(deployment: LocalDeployment) -> None:
    assert deployment.superlink is not None
    deployment.superlink.send_signal(signal.SIGKILL)
    deployment.superlink.wait()


def kill_server_app(deployment: LocalDeployment) -> None:
    for process in deployment.processes("flwr-serverapp"):
        kill(process, signal.SIGKILL)
