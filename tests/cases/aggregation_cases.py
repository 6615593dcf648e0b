"""Random models, cohorts and updates for the tests of aggregation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from torch import Tensor

from salf.aggregation.aggregation import Aggregated
from salf.aggregation.cohort_sums import Weigh
from salf.aggregation.rules import (
    Contributions,
    Contributors,
    Corrected,
    Everyone,
    InverseProbability,
    LayerShare,
    Memory,
    Rule,
)
from salf.layers import BufferKind, Layer, Layers
from salf.update import Update
from salf.values import Floats

SHAPES: list[tuple[int, ...]] = [(), (1,), (3,), (2, 3), (1, 1, 2), (0,), (2, 0)]
FLOATS = [torch.float32, torch.float64]


@dataclass(frozen=True)
class Cohort:
    """A model, the clients of one round, and which of them reached which layer."""

    layers: Layers
    state: dict[str, Tensor]
    updates: list[Update]
    reached: list[tuple[bool, ...]]

    def who(self, layer: int) -> list[int]:
        return [client for client, reached in enumerate(self.reached) if reached[layer]]


@st.composite
def models(draw: st.DrawFn, dtypes: Sequence[torch.dtype] = FLOATS) -> tuple[Layers, dict[str, Tensor]]:
    dtype = draw(st.sampled_from(dtypes))
    values = random_values(draw(st.integers(0, 2**32)))
    layers: list[Layer] = []
    state: dict[str, Tensor] = {}
    for index in range(draw(st.integers(1, 4))):
        shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
        kinds = draw(st.lists(st.sampled_from([dtype, torch.int64]), max_size=2))
        parameters = {f"{index}.p{place}": values(shape, dtype) for place, shape in enumerate(shapes)}
        buffers = {f"{index}.b{place}": values((2,), kind) for place, kind in enumerate(kinds)}
        layers.append(Layer(f"layer{index}", tuple(parameters), tuple(buffers)))
        state |= {**parameters, **buffers}
    state["frozen"] = values((2,), dtype)
    owned = [name for layer in layers for name in layer.buffers]
    counters: dict[str, BufferKind] = {name: "counter" for name in owned if state[name].dtype is torch.int64}
    return Layers(tuple(layers), buffer_kinds=counters), state


@st.composite
def cohorts(
    draw: st.DrawFn,
    model: st.SearchStrategy[tuple[Layers, dict[str, Tensor]]] | None = None,
    max_clients: int = 5,
    complete: bool = False,
) -> Cohort:
    layers, state = draw(models() if model is None else model)
    count = draw(st.integers(1, max_clients))
    if complete:
        rows = st.just((True,) * len(layers))
    elif draw(st.booleans()):
        depth = st.integers(0, len(layers))
        rows = depth.map(lambda d: tuple(index >= len(layers) - d for index in range(len(layers))))
    else:
        rows = st.tuples(*[st.booleans()] * len(layers))
    reached = draw(st.lists(rows, min_size=count, max_size=count))
    return Cohort(layers, state, [draw(updates(layers, state, row)) for row in reached], reached)


@st.composite
def updates(draw: st.DrawFn, layers: Layers, state: Mapping[str, Tensor], reached: Sequence[bool]) -> Update:
    values = random_values(draw(st.integers(0, 2**32)))
    conveyed = [layer for layer, here in zip(layers, reached, strict=True) if here]
    steps: int | dict[str, int] = draw(st.integers(1, 4))
    if draw(st.booleans()):
        steps = {layer.name: draw(st.integers(1, 9)) for layer in conveyed}
    return Update(
        {name: values(state[name].shape, state[name].dtype) for layer in conveyed for name in layer.parameters},
        steps,
        num_examples=draw(st.integers(1, 60)),
        buffers={
            name: values(state[name].shape, state[name].dtype)
            for layer in conveyed
            if draw(st.integers(0, 4))  # a client may keep a layer's statistics to itself
            for name in layer.buffers
        },
        examples={layer.name: draw(st.integers(1, 60)) for layer in conveyed},
    )


WEIGHINGS: list[Weigh] = ["clients", "examples"]


@st.composite
def rules(draw: st.DrawFn, kind: type[Rule]) -> Rule:
    common = kind(
        min_contributors=draw(st.integers(1, 3)),
        weight_by_examples=draw(st.booleans()),
        normalise=draw(st.sampled_from([None, "steps"])),
    )
    return replace(common, max_correction=draw(st.floats(1, 4))) if isinstance(common, Corrected) else common


def any_rule() -> st.SearchStrategy[Rule]:
    kinds: list[type[Rule]] = [Corrected, Contributors, Everyone, InverseProbability, Memory]
    return st.sampled_from(kinds).flatmap(rules)


def random_values(seed: int) -> Callable[[tuple[int, ...], torch.dtype], Tensor]:
    """Return a source of tensors of either sign."""
    generator = np.random.default_rng(seed)

    def values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if not dtype.is_floating_point:
            return torch.as_tensor(generator.integers(-50, 50, size=shape)).to(dtype)
        return torch.as_tensor(generator.normal(size=shape)).to(dtype)

    return values


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Say whether two states agree in names, types and every bit."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def same_result(first: Aggregated, second: Aggregated) -> bool:
    return (
        same(first.state, second.state)
        and first.contributors == second.contributors
        and first.overflowed == second.overflowed
        and first.memory.keys() == second.memory.keys()
        and all(
            first.memory[client].keys() == layers.keys()
            and all(same(first.memory[client][name].deltas, last.deltas) for name, last in layers.items())
            for client, layers in second.memory.items()
        )
    )


@dataclass(frozen=True)
class Halved(Corrected):
    """A user's rule that changes the factor: half a step of the paper's rule."""

    def factor(self, share: LayerShare) -> float:
        return 0.5 * super().factor(share)


@dataclass(frozen=True)
class Trusting(Rule):
    """A user's rule with its own weights: √n_u in total, less for later numbers, and by the inverse of reach."""

    needs_reach: ClassVar[bool] = True

    def client_weights(self, num_examples: Floats) -> Floats:
        weights: Floats = np.sqrt(num_examples)
        return weights

    def layer_weights(self, contributions: Contributions) -> Floats:
        assert contributions.reach is not None
        return contributions.weights / (1 + contributions.clients[:, None]) / np.maximum(contributions.reach, 0.1)

    def factor(self, share: LayerShare) -> float:
        return 1 / share.weight_all


@dataclass(frozen=True)
class Bounding(Contributors):
    """A user's rule that looks at each update: large ones count less, as if they had been shortened to norm 1."""

    @property
    def needs_individual_updates(self) -> bool:
        return True

    def layer_weights(self, contributions: Contributions) -> Floats:
        assert contributions.update is not None
        norm = math.sqrt(sum(float(delta.double().square().sum()) for delta in contributions.update.deltas.values()))
        weights: Floats = contributions.weights / np.full(contributions.steps.shape, max(1.0, norm))
        return weights


@dataclass(frozen=True)
class Fading(Memory):
    """A user's rule that remembers, and trusts updates of several steps less."""

    def layer_weights(self, contributions: Contributions) -> Floats:
        return contributions.weights / np.maximum(contributions.steps, 1)


OWN_RULES = [Halved(), Trusting(), Bounding(), Fading()]


def own_rule_twin(
    rule: Rule,
    state: Mapping[str, Tensor],
    layers: Layers,
    updates: Sequence[Update],
    clients: Sequence[int],
    reach: npt.NDArray[np.float64],
) -> dict[str, Tensor]:
    """The parameters after a round by one of `OWN_RULES` in which every client was heard, in plain loops."""
    examples = [update.num_examples for update in updates]
    new = {}
    for index, layer in enumerate(layers):
        who = [row for row, update in enumerate(updates) if update.includes(layer)]
        shares: dict[int, float] = {}
        for row in who:
            norm = math.sqrt(sum(float(delta.double().square().sum()) for delta in updates[row].deltas.values()))
            steps = updates[row].steps_of(layer.name)
            if isinstance(rule, Halved):
                empty = math.prod(1 - chance for chance in reach[:, index])
                shares[row] = 0.5 * min(2.0, 1 / (1 - empty)) / len(who)
            elif isinstance(rule, Trusting):
                total = sum(map(math.sqrt, examples))
                shares[row] = math.sqrt(examples[row]) / (1 + clients[row]) / max(0.1, reach[row, index]) / total
            elif isinstance(rule, Bounding):
                shares[row] = 1 / max(1.0, norm) / len(who)
            else:
                total = sum(1 / updates[other].steps_of(layer.name) for other in who)
                shares[row] = 1 / steps / total
        for name in layer.parameters:
            moves = [share * updates[row].deltas[name].double() for row, share in shares.items()]
            new[name] = sum(moves, start=state[name].double())
    return new
