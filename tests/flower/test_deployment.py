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

from deployed.task import a_model, update_of  # noqa: E402 - found only now
from local_deployment import LocalDeployment, kill  # noqa: E402

DEPTHS = (3, 1)
# On a machine with nothing else to do a round takes about seven seconds; where it takes longer nothing may fail.
PATIENCE = 1200.0
AMPLE = 1800.0  # seconds of a round that ends when both nodes have replied
GRACE = 30.0
SLACK = 2.0  # seconds in which a busy machine notices that a round is over; tests on a clock of their own allow a poll


@contextmanager
def deployed(folder: Path, *, secure: bool = False, separate: bool = False, **slow: float) -> Iterator[LocalDeployment]:
    nodes = [{"depth": depth, "seconds": slow.get(f"node{place}", 0.0)} for place, depth in enumerate(DEPTHS)]
    with LocalDeployment(folder / "federation", nodes, secure=secure, separate=separate) as federation:
        yield federation


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
        assert time.monotonic() < until, f"in vain: waited for {what}"
        time.sleep(0.2)


def has_ended(federation: LocalDeployment, folder: Path) -> bool:
    return (folder / "model.safetensors").exists() and not federation.processes("flwr-serverapp")


def check_rounds(folder: Path, rounds: int) -> list[FederationRecord]:
    """Check that every round is there once and that none was too long; return the records."""
    records = records_in(folder)
    assert [record.round for record in records] == list(range(1, rounds + 1))
    for record in records:
        assert record.deadline_s is not None
        assert record.seconds <= record.deadline_s + GRACE + SLACK
    return records


def replayed(records: list[FederationRecord]) -> dict[str, Tensor]:
    """Return the weights by the naive way, one aggregation after another, given who replied in which round."""
    model, layers = a_model()
    state, seen = dict(model.state_dict()), ObservedReach(len(layers))
    for record in records:
        places = [place for place in range(record.clients) if replied(place, record)]
        updates = [update_of(DEPTHS[place], place, record.round, layers, state) for place in places]
        asked = [*places, *(place for place in range(2) if place not in places)][: record.clients]
        if asked:
            reach = seen.probability(asked)
            state = salf.aggregate(state, updates, layers, Corrected(), num_clients=len(asked), reach=reach).state
        depths = [DEPTHS[place] if place in places else 0 for place in asked]
        seen = seen.observe(asked, [[layer >= 3 - depth for layer in range(3)] for depth in depths])
    return state


def replied(place: int, record: FederationRecord) -> bool:
    """Say whether a node's layers are in the model of a round: node 0 conveys all of them, node 1 the last one."""
    whole, last = record.contributors[0] == 1, record.contributors[-1]
    return whole if place == 0 else last - whole == 1


def check_weights(folder: Path, records: list[FederationRecord]) -> None:
    made = load_file(folder / "model.safetensors")
    for name, value in replayed(records).items():
        torch.testing.assert_close(made[name], value, rtol=1e-5, atol=1e-6)


def check_undisturbed(folder: Path, rounds: int) -> None:
    """Check that the run ended as if nothing had happened: both nodes in every round, and the weights that follow."""
    records = check_rounds(folder, rounds)
    assert [record.contributors for record in records] == [(1, 1, 2)] * rounds
    check_weights(folder, records)


def test_a_federation_with_certificates_and_keys_gives_what_aggregate_gives(tmp_path: Path) -> None:
    """The one deployment that is always tested: both apps run, and a node whose key nobody registered is refused."""
    rounds = tmp_path / "rounds"
    with deployed(tmp_path, secure=True) as federation:
        stranger = federation.start_supernode(0, key=len(DEPTHS))
        federation.run(APP, **settings(rounds, 2))
        check_digits(federation.run(EXAMPLES / "after", num_server_rounds=2, nodes=2, deadline_seconds=AMPLE))
        wait_for(lambda: stranger.poll() is not None, "the stranger to be refused")
        assert stranger.poll() != 0
    assert not federation.processes()
    check_undisturbed(rounds, 2)


def test_the_app_of_two_lines_trains_on_the_simulation_engine(tmp_path: Path) -> None:
    with LocalDeployment(tmp_path / "federation", [{}, {}], secure=False, simulated=True) as federation:
        check_digits(federation.run(EXAMPLES / "after", num_server_rounds=2, nodes=2, deadline_seconds=AMPLE))
    assert not federation.processes()


def check_digits(log: str) -> None:
    """Check what the example app prints: whole rounds of both nodes, which changed what the model says.

    How much two rounds teach depends on the initial weights, which are drawn anew each time.
    """
    records = [FederationRecord.from_json(line) for line in re.findall(r"└──> (\{.*\})", log)]
    assert [record.contributors for record in records] == [(2, 2, 2, 2)] * 2
    accuracies = [float(found) for found in re.findall(r"accuracy ([0-9.]+)", log)]
    assert len(accuracies) == 3
    assert len(set(accuracies)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("key", ["none", "unregistered"])
def test_an_unauthenticated_node_is_refused(tmp_path: Path, key: str) -> None:
    with deployed(tmp_path, secure=True) as federation:
        stranger = federation.start_supernode(0, key=-1 if key == "none" else len(DEPTHS))
        wait_for(lambda: stranger.poll() is not None, "the node's refusal")
        assert stranger.poll() != 0


@pytest.mark.slow
def test_a_node_killed_in_a_round_costs_its_layers_and_nothing_else(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds"
    with deployed(tmp_path, node1=10.0) as federation:
        federation.begin(APP, **settings(rounds, 4, deadline_seconds=60.0, nodes=1))
        wait_for(lambda: "Start `flwr-clientapp`" in federation.log("supernode1"), "the node to begin")
        federation.supernodes[1].send_signal(signal.SIGKILL)
        wait_for(lambda: has_ended(federation, rounds), "four rounds")
    records = check_rounds(rounds, 4)
    assert sum(record.missing + record.failed for record in records) >= 1
    assert not any(replied(1, record) for record in records)
    check_weights(rounds, records)


@pytest.mark.slow
def test_a_node_that_stands_still_misses_its_rounds_and_comes_back(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds"
    with deployed(tmp_path) as federation:
        federation.begin(APP, **settings(rounds, 12, deadline_seconds=60.0))
        wait_for(lambda: len(records_in(rounds)) >= 1, "a round")
        federation.supernodes[1].send_signal(signal.SIGSTOP)
        wait_for(lambda: any(record.missing or record.failed for record in records_in(rounds)), "a missing node")
        federation.supernodes[1].send_signal(signal.SIGCONT)
        missed = len(records_in(rounds))
        wait_for(lambda: has_ended(federation, rounds), "the other rounds")
    records = check_rounds(rounds, 12)
    assert any(replied(1, record) for record in records[missed:])
    check_weights(rounds, records)


@pytest.mark.slow
def test_a_server_app_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds"
    with deployed(tmp_path) as federation:
        federation.begin(APP, **settings(rounds, 4))
        wait_for(lambda: len(records_in(rounds)) >= 2, "two rounds")
        for process in federation.processes("flwr-serverapp"):
            kill(process, signal.SIGKILL)
        federation.run(APP, **settings(rounds, 4))
    check_undisturbed(rounds, 4)


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["program", "machine"])
def test_a_superlink_that_was_killed_is_started_again_and_the_run_resumed(tmp_path: Path, dies: str) -> None:
    """Where the program alone dies, its server app goes on for a while: the next one waits until the folder is free."""
    rounds = tmp_path / "rounds"
    with deployed(tmp_path) as federation:
        federation.begin(APP, **settings(rounds, 4))
        wait_for(lambda: len(records_in(rounds)) >= 2, "two rounds")
        kill_superlink(federation)
        if dies == "machine":
            for process in federation.processes("flwr-serverapp"):
                kill(process, signal.SIGKILL)
        federation.start_superlink()
        federation.run(APP, **settings(rounds, 4))
    check_undisturbed(rounds, 4)


@pytest.mark.slow
def test_a_server_app_of_a_superexec_of_its_own_outlives_the_superlink(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds"
    with deployed(tmp_path, separate=True) as federation:
        federation.begin(APP, **settings(rounds, 4))
        wait_for(lambda: len(records_in(rounds)) >= 2, "two rounds")
        kill_superlink(federation)
        federation.start_superlink()
        wait_for(lambda: has_ended(federation, rounds), "four rounds")
    check_undisturbed(rounds, 4)


def kill_superlink(federation: LocalDeployment) -> None:
    assert federation.superlink is not None
    federation.superlink.send_signal(signal.SIGKILL)
    federation.superlink.wait()
