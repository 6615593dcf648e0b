"""What clients last conveyed is remembered within a budget, and the oldest of it is forgotten first."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from salf.aggregation.aggregation import aggregate
from salf.aggregation.client_memory import ClientMemory
from salf.aggregation.rules import Memory
from salf.errors import InvalidSetting
from salf.layers.find import Layer, Layers
from salf.participation.observed import ObservedReach
from salf.runs.checkpoint import load_checkpoint, save_checkpoint
from salf.simulation.server_state import ServerState
from salf.update import Update

LAYERS = Layers((Layer("body", ("body.weight",)), Layer("head", ("head.weight",))))
BYTES = {"body": 12, "head": 8}  # three and two numbers of four bytes
STATE = {"body.weight": torch.zeros(3), "head.weight": torch.zeros(2)}


def conveying(value: float, *, whole: bool) -> Update:
    deltas = {"head.weight": torch.full((2,), value)}
    return Update(deltas | {"body.weight": torch.full((3,), value)} if whole else deltas, steps=1, num_examples=1)


def sizes(memory: ClientMemory) -> int:
    return sum(BYTES[layer] for layers in memory.values() for layer in layers)


# Per round: which clients convey, and whether all layers.
Rounds = st.lists(st.dictionaries(st.integers(0, 6), st.booleans(), min_size=1, max_size=3), min_size=1, max_size=12)


@given(Rounds, st.integers(60, 200))
def test_the_oldest_is_forgotten_first(rounds: list[Mapping[int, bool]], budget: int) -> None:
    memory: ClientMemory = {}
    naive: dict[tuple[int, str], tuple[int, float]] = {}  # the round in which it was conveyed, and the value
    for number, conveyed in enumerate(rounds, start=1):
        clients = [*conveyed]
        updates = [conveying(10.0 * number + client, whole=conveyed[client]) for client in clients]
        result = aggregate(STATE, updates, LAYERS, Memory(budget_bytes=budget), clients=clients, memory=memory)
        before, memory = memory, result.memory
        for client in clients:
            layers = ["head", "body"] if conveyed[client] else ["head"]
            naive |= {(client, layer): (number, 10.0 * number + client) for layer in layers}
        while sum(BYTES[layer] for _, layer in naive) > budget:
            oldest = min(naive, key=lambda key: (naive[key][0], *key))
            del naive[oldest]
        found = {
            (c, name): last.deltas[f"{name}.weight"][0].item()
            for c, own in memory.items()
            for name, last in own.items()
        }
        assert found == {key: value for key, (_, value) in naive.items()}
        assert sizes(memory) <= budget
        assert sizes(before) <= budget  # and what was there before was not touched
        for layer in ("body", "head"):
            known = [value for (_, name), (_, value) in naive.items() if name == layer]
            moved = result.state[f"{layer}.weight"][0].item()
            if any(layer == "head" or conveyed[client] for client in clients):
                assert moved == pytest.approx(sum(known) / len(known), rel=1e-5)
            else:
                assert moved == 0.0


def test_a_budget_for_less_than_a_round_is_refused() -> None:
    updates = [conveying(1.0, whole=True), conveying(2.0, whole=True)]
    with pytest.raises(InvalidSetting, match=r"budget_bytes is 39, less than one round's updates; raise it"):
        aggregate(STATE, updates, LAYERS, Memory(budget_bytes=39))
    aggregate(STATE, updates, LAYERS, Memory(budget_bytes=40))


def test_what_is_oldest_is_known_after_a_checkpoint(tmp_path: Path) -> None:
    memory: ClientMemory = {}
    for client in (4, 2, 3):
        one = [replace(conveying(float(client), whole=True), examples={"body": 5, "head": client})]
        memory = aggregate(STATE, one, LAYERS, Memory(budget_bytes=60), clients=[client], memory=memory).memory
    save_checkpoint(tmp_path / "state", ServerState(3, 3.0, STATE, ObservedReach(2), memory))
    again = load_checkpoint(tmp_path / "state")[0].memory
    after = aggregate(STATE, [conveying(9.0, whole=True)], LAYERS, Memory(budget_bytes=60), clients=[9], memory=again)
    assert sorted(after.memory) == [2, 3, 4, 9]
    assert after.memory[4] == {}
    assert [after.memory[3][layer].examples for layer in LAYERS.names] == [5, 3]
    assert set(after.memory[2]) == set(after.memory[3]) == {"body", "head"}
