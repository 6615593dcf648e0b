"""Rounds of every kind, and what an engine makes of them."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from engine_models import MODELS, built, data_for
from hypothesis import strategies as st
from torch import Tensor, nn

from salf.aggregation.aggregation import Aggregated, Aggregation
from salf.aggregation.client_memory import ClientMemory
from salf.aggregation.rules import Contributors, Corrected, Everyone, InverseProbability, Memory, Rule
from salf.engines import (
    Engine,
    FusedEngine,
    Loss,
    OptimizerSettings,
    PlainEngine,
    StackedEngine,
    Tasks,
    Training,
    cross_entropy_of,
    train_round,
)
from salf.layers.find import Layers, find_layers
from salf.values import LayerCosts

SGD = OptimizerSettings(lr=0.2)
DECAYING = OptimizerSettings(lr=0.2, weight_decay=0.05)
HEAVY = OptimizerSettings(lr=0.2, momentum=0.9, weight_decay=0.05)
ENGINES: dict[str, Any] = {"plain": PlainEngine, "fused": FusedEngine, "stacked": StackedEngine}
CLIENTS = 9  # the number of the last client that a cohort may hold
SINGLE, DOUBLE = 1e-5, 1e-10


def single_thread() -> Iterator[None]:
    """Compute on one thread: the models are so small that sharing them out takes most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def training_of(
    model: nn.Module,
    layers: Layers,
    inputs: Tensor,
    labels: Tensor,
    how: OptimizerSettings = SGD,
    *,
    local_steps: int = 1,
    loss_of: Callable[[int], Loss] = cross_entropy_of,
) -> Training:
    """A training whose costs, which matter to the choice of an engine only, are all 1."""
    costs = LayerCosts(1.0, (1.0,) * len(layers), (1,) * len(layers))
    return Training(model, layers, costs, inputs, labels, how, batch_size=4, local_steps=local_steps, loss_of=loss_of)


class Subject(NamedTuple):
    """A model with its data, and global weights that are not those with which it was built."""

    model: nn.Module
    layers: Layers
    inputs: Tensor
    labels: Tensor
    weights: Mapping[str, Tensor]

    def training(self, how: OptimizerSettings = SGD, *, local_steps: int = 1) -> Training:
        return training_of(self.model, self.layers, self.inputs, self.labels, how, local_steps=local_steps)

    def engine(self, kind: str, how: OptimizerSettings = SGD, **limits: int) -> Engine:
        engine: Engine = ENGINES[kind](self.training(how), **limits)
        return engine


def subject_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> Subject:
    return Subject(model, find_layers(model, inputs[:2]), inputs, labels, moved_weights(model))


@cache
def prepared(name: str, *, double: bool = True) -> Subject:
    """One of the models of `engine_models`; nobody may change it."""
    return subject_of(built(MODELS[name], double=double), *data_for(name, double=double))


@cache
def engine_for(kind: str, name: str, how: OptimizerSettings, *, double: bool = True) -> Engine:
    """An engine that is used for round after round, as in a simulation."""
    return prepared(name, double=double).engine(kind, how)


def moved_weights(model: nn.Module) -> dict[str, Tensor]:
    """A state dict at some distance from the model's own, as after some rounds."""
    twin = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for tensor in twin.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=draw, dtype=torch.float64))
    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            assert module.num_batches_tracked is not None
            module.running_mean += 0.5
            module.running_var *= 1.5
            module.num_batches_tracked += 3
    return {name: value.detach().clone() for name, value in twin.state_dict().items()}


@dataclass(frozen=True)
class Round:
    """What is computed in a round, and how it is aggregated."""

    tasks: Tasks
    rule: Rule
    reach: npt.NDArray[np.float64] | None = None
    memory: ClientMemory | None = None

    def permuted(self, order: npt.ArrayLike) -> "Round":
        """The same clients in another order."""
        own = np.asarray(order)
        rows = {name: getattr(self.tasks, name)[own] for name in ("clients", "steps", "batches", "num_examples")}
        reach = self.reach[own] if self.reach is not None and self.reach.ndim == 2 else self.reach
        return replace(self, tasks=replace(self.tasks, **rows), reach=reach)


class Result(NamedTuple):
    aggregated: Aggregated
    accepted: list[bool]


def play(engine: Engine, subject: Subject, played: Round) -> Result:
    """Let an engine compute a round."""
    result, accepted = train_round(
        engine,
        subject.weights,
        played.tasks,
        lambda: Aggregation(
            subject.weights,
            subject.layers,
            played.rule,
            reach=played.reach,
            clients=played.tasks.clients.tolist(),
            memory=played.memory,
        ),
    )
    return Result(result, accepted.tolist())


def tasks_of(
    steps: npt.ArrayLike,
    sizes: npt.ArrayLike,
    *,
    examples: int = 40,
    clients: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Tasks:
    """Tasks with the given steps, (clients, layers), and batches of the given sizes, padded to the largest."""
    counts, size = np.asarray(steps, dtype=np.int64), np.asarray(sizes, dtype=np.int64)
    draw = np.random.default_rng(seed)
    batches = draw.integers(examples, size=(len(counts), max(1, int(counts.max(initial=0))), int(size.max())))
    batches = np.where(np.arange(size.max()) < size[:, None, None], batches, -1)
    numbers = np.arange(len(counts)) if clients is None else np.asarray(clients)
    full = bool((batches >= 0).all())
    return Tasks(numbers, counts, batches, draw.integers(1, 50, size=len(counts)), seed, 1, full=full)


def steps_to(depths: npt.ArrayLike, layers: int) -> npt.NDArray[np.int64]:
    """Steps of clients that finished so many layers in all, counted from the output on, in step after step."""
    return (np.asarray(depths, dtype=np.int64)[:, None] + np.arange(layers)) // layers


def rules(*, apart: bool, sums: bool) -> st.SearchStrategy[Rule]:
    """Rules of every kind; `apart` if layers may weigh clients in different ways, `sums` if sums must suffice."""
    kinds: list[Callable[..., Rule]] = [Corrected, Contributors, Everyone]
    kinds += [InverseProbability] if apart else []
    kinds += [] if sums else [Memory]
    options = {
        "min_contributors": st.sampled_from([1, 1, 2]),
        "weight_by_examples": st.booleans(),
        "normalise": st.sampled_from([None, "steps"]),
    }
    return st.one_of([st.builds(kind, **options) for kind in kinds])


@st.composite
def rounds(
    draw: st.DrawFn,
    layers: int,
    *,
    local_steps: int = 1,
    apart: bool = True,
    sums: bool = True,
    proximal: bool = True,
    least: int = 2,
) -> Round:
    """A round of up to six clients of all depths with batches of `least` to four examples."""
    clients = draw(st.lists(st.integers(0, CLIENTS), min_size=1, max_size=6, unique=True))
    number = len(clients)
    depths = draw(st.lists(st.integers(0, layers * local_steps), min_size=number, max_size=number))
    sizes = draw(st.lists(st.integers(least, 4), min_size=number, max_size=number))
    seed = draw(st.integers(0, 2**32))
    tasks = tasks_of(steps_to(depths, layers), sizes, clients=clients, seed=seed)
    tasks = replace(tasks, proximal=draw(st.sampled_from([0.0, 0.0, 0.5])) if proximal else 0.0)
    rule = draw(rules(apart=apart, sums=sums))
    chances = np.random.default_rng(seed).uniform(0.1, 1.0, size=(number, layers))
    known = isinstance(rule, InverseProbability) or draw(st.booleans())
    return Round(tasks, rule, chances if known else None)


def assert_close(one: Result, other: Result, tolerance: float) -> None:
    """Compare two results; tensors by their difference relative to the largest value of the tensor."""
    assert one.accepted == other.accepted
    assert one.aggregated.contributors == other.aggregated.contributors
    assert one.aggregated.overflowed == other.aggregated.overflowed
    assert_states_close(one.aggregated.state, other.aggregated.state, tolerance)
    assert {client: set(own) for client, own in one.aggregated.memory.items()} == {
        client: set(own) for client, own in other.aggregated.memory.items()
    }


def assert_states_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    wrong = {}
    for name, expected in other.items():
        assert one[name].dtype == expected.dtype
        difference = float((one[name].double() - expected.double()).abs().max())
        allowed = tolerance * float(expected.double().abs().max()) if expected.is_floating_point() else 0.0
        if not difference <= allowed:
            wrong[name] = (difference, allowed)
    assert not wrong


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Say whether two states agree to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
