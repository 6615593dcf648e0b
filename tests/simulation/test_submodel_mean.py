"""Overlapping sub-models are averaged element by element, over exactly those who hold the element."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from salf.aggregation.aggregation import Aggregation
from salf.aggregation.rules import Contributors
from salf.aggregation.server_optimizer import ServerOptimizer
from salf.layers.find import Layer, Layers
from salf.models import prefixes
from salf.simulation.submodels import SubmodelMean
from salf.update import Update

# An MLP of 2 inputs, 4 hidden neurons and 3 classes.
SHAPES = {"fc1.weight": (4, 2), "fc1.bias": (4,), "fc2.weight": (3, 4), "fc2.bias": (3,)}
LAYERS = Layers((Layer("fc1", ("fc1.weight", "fc1.bias")), Layer("fc2", ("fc2.weight", "fc2.bias"))))


def shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    return {"fc1.weight": (hidden, 2), "fc1.bias": (hidden,), "fc2.weight": (3, hidden), "fc2.bias": (3,)}


def filled(value: float, hidden: int = 4) -> dict[str, Tensor]:
    return {name: torch.full(shape, value) for name, shape in shapes(hidden).items()}


def test_two_widths_by_hand() -> None:
    # From 1, two clients train all 4 neurons to 3 and 5, and one trains the first 2 to 10.
    wide, narrow = (Aggregation(filled(1.0, hidden), LAYERS, Contributors()) for hidden in (4, 2))
    for delta in (2.0, 4.0):
        wide.add(Update(filled(delta, 4), steps=1, num_examples=7))
    narrow.add(Update(filled(9.0, 2), steps=1, num_examples=7))
    mean = SubmodelMean(filled(1.0))
    mean.add(wide.finish().state, weight=2.0)
    mean.add(narrow.finish().state, weight=1.0)
    new = mean.state()
    assert new["fc1.weight"].tolist() == [[6.0, 6.0], [6.0, 6.0], [4.0, 4.0], [4.0, 4.0]]
    assert new["fc1.bias"].tolist() == [6.0, 6.0, 4.0, 4.0]
    assert new["fc2.weight"].tolist() == [[6.0, 6.0, 4.0, 4.0]] * 3
    assert new["fc2.bias"].tolist() == [6.0] * 3


def test_elements_that_no_group_holds_stay_to_the_last_bit() -> None:
    before = {name: torch.randn(shape) for name, shape in SHAPES.items()} | {"seen": torch.tensor(3)}
    mean = SubmodelMean(before)
    rows = torch.tensor([True, False, True])
    mean.add(filled(5.0, 2), weight=3.0, rows={"fc2.weight": rows, "fc2.bias": rows})
    new, held = mean.state(), mean.held()
    assert held["fc1.bias"].tolist() == [True, True, False, False]
    assert held["fc2.weight"].tolist() == [[True, True, False, False], [False] * 4, [True, True, False, False]]
    for name, which in held.items():
        assert (new[name][which] == 5.0).all()
        assert new[name][~which].equal(before[name][~which])
    assert new["seen"].equal(before["seen"])
    assert new["seen"] is not before["seen"]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), hidden=st.lists(st.integers(1, 4), min_size=1, max_size=5), by_examples=st.booleans())
def test_it_equals_the_naive_mean_over_the_clients_that_hold_an_element(
    data: st.DataObject, hidden: list[int], *, by_examples: bool
) -> None:
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    before = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    examples = data.draw(st.lists(st.integers(1, 9), min_size=len(hidden), max_size=len(hidden)))
    classes = data.draw(
        st.lists(st.sampled_from([(0,), (1, 2), (0, 1, 2)]), min_size=len(hidden), max_size=len(hidden))
    )
    deltas = [{name: torch.randn(shape, generator=draw) for name, shape in shapes(size).items()} for size in hidden]
    rule, mean = Contributors(weight_by_examples=by_examples), SubmodelMean(before)
    for size, own in sorted(set(zip(hidden, classes, strict=True))):
        running = Aggregation(prefixes(before, filled(0, size)), LAYERS, rule)
        members = [client for client, key in enumerate(zip(hidden, classes, strict=True)) if key == (size, own)]
        for client in members:
            running.add(Update(deltas[client], steps=1, num_examples=examples[client]))
        rows = torch.tensor([label in own for label in range(3)])
        weight = running.sums.weights([examples[client] for client in members]).sum()
        mean.add(running.finish().state, float(weight), {"fc2.weight": rows, "fc2.bias": rows})
    new = mean.state()
    for name, shape in SHAPES.items():
        for place in product(*map(range, shape)):
            total = weights = 0.0
            for size, own, count, delta in zip(hidden, classes, examples, deltas, strict=True):
                inside = all(index < limit for index, limit in zip(place, shapes(size)[name], strict=True))
                if inside and (not name.startswith("fc2") or place[0] in own):
                    weight = count if by_examples else 1
                    total, weights = total + weight * float(delta[name][place]), weights + weight
            expected = float(before[name][place]) + (total / weights if weights else 0.0)
            assert float(new[name][place]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    "server",
    [
        ServerOptimizer(lr=0.5, momentum=0.9),
        ServerOptimizer(optimizer="adam", lr=0.5),
        ServerOptimizer(optimizer="yogi", lr=0.5),
    ],
    ids=lambda server: str(server.optimizer),
)
def test_a_server_optimizer_leaves_elements_that_no_group_held(server: ServerOptimizer) -> None:
    before = {"w": torch.tensor([1.0, 2.0, 3.0])}
    some = {"w": torch.tensor([True, True, False])}
    first, memory = server.step(before, {"w": before["w"] + 1}, ["w"], {})
    whole, forgotten = server.step(first, {"w": first["w"] + 1}, ["w"], memory)
    part, kept = server.step(first, {"w": first["w"] + torch.tensor([1.0, 1.0, 0.0])}, ["w"], memory, held=some)
    assert part["w"][:2].equal(whole["w"][:2])
    assert part["w"][2].equal(first["w"][2])
    for moment, value in kept["w"].items():
        assert value[:2].equal(forgotten["w"][moment][:2])
        assert value[2].equal(memory["w"][moment][2])
    # The moments of elements that no client held are those of the first step.
    _, fresh = server.step(before, {"w": before["w"] + 1}, ["w"], {}, held=some)
    _, later = server.step(before, {"w": before["w"] + 1}, ["w"], fresh)
    _, never = server.step(before, {"w": before["w"] + 1}, ["w"], {})
    assert all(later["w"][moment][2].equal(value[2]) for moment, value in never["w"].items())
