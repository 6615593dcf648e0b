"""Real processes on loopback: encrypted, authenticated, killed, stopped and restarted."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import salf
from salf.flower import FederationRecord
from salf.flower.state import FederationFolder
from salf.reach import ObservedReach
from salf.rules import Corrected

EXAMPLES = Path(__file__).parents[2] / "examples" / "flower"
APP = Path(__file__).parent / "deployed"
sys.path[:0] = [str(EXAMPLES), str(APP)]

from deployed.task import a_model, update_of  # noqa: E402 - found only now
from federation import Federation, kill  # noqa: E402

DEPTHS = (3, 1)
# On a machine with nothing else to do a round takes about seven seconds; where it takes longer nothing may fail.
PATIENCE = 300.0


@contextmanager
def deployed(folder: Path, *, secure: bool = False, separate: bool = False, **slow: float) -> Iterator[Federation]:
    nodes = [{"depth": depth, "seconds": slow.get(f"node{place}", 0.0)} for place, depth in enumerate(DEPTHS)]
    with Federation(folder / "federation", nodes, secure=secure, separate=separate) as federation:
        yield federation


def expected(rounds: int) -> dict[str, Tensor]:
    """Return the final weights by the naive way: one aggregation after another, with both nodes in every round."""
    model, layers = a_model()
    state, seen = dict(model.state_dict()), ObservedReach(len(layers))
    for number in range(1, rounds + 1):
        updates = [update_of(depth, node, number, layers, state) for node, depth in enumerate(DEPTHS)]
        state = salf.aggregate(state, updates, layers, Corrected(), reach=seen.probability([0, 1])).state
        seen = seen.observe([0, 1], [[True] * 3, [False, False, True]])
    return state


def records_in(folder: Path) -> list[FederationRecord]:
    return FederationFolder(folder).records() if (folder / "records.jsonl").exists() else []


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"in vain: waited for {what}"
        time.sleep(0.2)


def check(folder: Path, rounds: int) -> list[FederationRecord]:
    """Check that no round was too long, and return the records."""
    records = records_in(folder)
    assert [record.round for record in records] == list(range(1, rounds + 1))
    for record in records:
        assert record.deadline_s is not None
        assert record.seconds <= record.deadline_s + 30.0 + 1.0
    return records


def same_as_undisturbed(folder: Path, rounds: int) -> None:
    made = load_file(folder / "model.safetensors")
    for name, value in expected(rounds).items():
        torch.testing.assert_close(made[name], value, rtol=1e-5, atol=1e-6)


def test_a_federation_with_certificates_and_keys_gives_what_aggregate_gives(tmp_path: Path) -> None:
    """The one deployment that is always tested; a node whose key nobody registered is refused on the way."""
    rounds = tmp_path / "rounds"
    with deployed(tmp_path, secure=True) as federation:
        stranger = federation.start_supernode(0, key=len(DEPTHS))
        federation.run(APP, num_server_rounds=2, folder=rounds, deadline_seconds=120.0)
        assert stranger.poll() not in (None, 0)
    assert [record.contributors for record in check(rounds, 2)] == [(1, 1, 2)] * 2
    same_as_undisturbed(rounds, 2)


@pytest.mark.deployment
@pytest.mark.parametrize("key", ["none", "unregistered"])
def test_an_unauthenticated_node_is_refused(tmp_path: Path, key: str) -> None:
    with deployed(tmp_path, secure=True) as federation:
        stranger = federation.start_supernode(0, key=-1 if key == "none" else len(DEPTHS))
        wait_for(lambda: stranger.poll() is not None, "the node's refusal")
        assert stranger.poll() != 0


@pytest.mark.deployment
def test_a_node_killed_in_a_round_costs_its_layers_and_nothing_else(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds"
    with deployed(tmp_path, node1=5.0) as federation:
        federation.begin(APP, num_server_rounds=4, folder=rounds, deadline_seconds=30.0, nodes=1)
        wait_for(lambda: "Start `flwr-clientapp`" in federation.log("supernode1"), "the node to begin")
        federation.supernodes[1].send_signal(signal.SIGKILL)
        wait_for(lambda: len(records_in(rounds)) == 4, "four rounds")
    records = check(rounds, 4)
    assert records[-1].contributors == (1, 1, 1)


@pytest.mark.deployment
def test_a_node_that_stands_still_misses_its_rounds_and_comes_back(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds"
    with deployed(tmp_path) as federation:
        federation.begin(APP, num_server_rounds=6, folder=rounds, deadline_seconds=30.0)
        wait_for(lambda: len(records_in(rounds)) >= 1, "a round")
        federation.supernodes[1].send_signal(signal.SIGSTOP)
        wait_for(lambda: any(record.missing or record.failed for record in records_in(rounds)), "a missing node")
        federation.supernodes[1].send_signal(signal.SIGCONT)
        wait_for(lambda: len(records_in(rounds)) == 6, "six rounds")
    records = check(rounds, 6)
    assert records[-1].contributors == (1, 1, 2)


@pytest.mark.deployment
def test_a_server_app_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds"
    with deployed(tmp_path) as federation:
        federation.begin(APP, num_server_rounds=4, folder=rounds, deadline_seconds=120.0)
        wait_for(lambda: len(records_in(rounds)) >= 2, "two rounds")
        for process in federation.processes("flwr-serverapp"):
            kill(process, signal.SIGKILL)
        federation.run(APP, num_server_rounds=4, folder=rounds, deadline_seconds=120.0)
    check(rounds, 4)
    same_as_undisturbed(rounds, 4)


@pytest.mark.deployment
def test_a_superlink_that_was_killed_is_started_again_and_the_run_resumed(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds"
    with deployed(tmp_path) as federation:
        federation.begin(APP, num_server_rounds=4, folder=rounds, deadline_seconds=120.0)
        wait_for(lambda: len(records_in(rounds)) >= 2, "two rounds")
        assert federation.superlink is not None
        federation.superlink.send_signal(signal.SIGKILL)
        federation.superlink.wait()
        for process in federation.processes("flwr-serverapp"):
            kill(process, signal.SIGKILL)  # the machine has died, not the program alone
        federation.start_superlink()
        federation.run(APP, num_server_rounds=4, folder=rounds, deadline_seconds=120.0)
    check(rounds, 4)
    same_as_undisturbed(rounds, 4)
