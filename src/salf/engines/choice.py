"""Which engine computes a run, and whether it can be trusted with the model."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from salf import seeds
from salf.aggregation import Aggregation
from salf.devices import LayerCosts
from salf.engines.fused import FusedEngine
from salf.engines.plain import PlainEngine
from salf.engines.stacked import StackedEngine
from salf.engines.task import Engine, Optimisation, Tasks
from salf.errors import InvalidSetting, UnsuitableModel
from salf.layers import Layers
from salf.rules import Contributors, InverseProbability, Memory, Rule

EngineName = Literal["auto", "plain", "fused", "stacked"]

# Above so many operations per example, a client's own work outweighs what it costs to begin each of them.
_STACKED_UP_TO_FLOPS = 3e5
_CHECKED_DEPTHS = 5
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Training:
    """What the clients of a run train, on what, and how; `batch_size` is the largest that occurs."""

    model: nn.Module
    layers: Layers
    costs: LayerCosts
    inputs: Tensor
    labels: Tensor
    optimisation: Optimisation
    batch_size: int
    local_steps: int


def choose_engine(name: EngineName, training: Training, rule: Rule) -> Engine:
    """Return the engine called `name`, or with "auto" the one that suits the run best.

    The choice depends on the run alone, not on how fast this machine is, so that a run is the same wherever it is
    resumed. An engine that does many clients at once is tried on a few of them beside the plain one first. If their
    results differ "auto" warns and goes on with the plain engine; an engine that was asked for by name raises
    `InvalidSetting`.
    """
    wanted = _best(training, rule) if name == "auto" else name
    if wanted == "plain":
        return _plain(training)
    try:
        engine = _build(wanted, training, rule)
        _check(engine, training)
    except (InvalidSetting, UnsuitableModel) as error:
        if name != "auto":
            raise InvalidSetting(f"engine is '{name}': {error}; choose 'auto' or 'plain'") from error
        warnings.warn(f"simulated one client after another, which is slow: {error}", stacklevel=2)
        return _plain(training)
    return engine


def _best(training: Training, rule: Rule) -> Literal["plain", "fused", "stacked"]:
    if training.local_steps == 1 and training.optimisation.optimizer == "sgd" and not isinstance(rule, Memory):
        return "fused"
    return "stacked" if training.costs.forward <= _STACKED_UP_TO_FLOPS else "plain"


def _plain(training: Training) -> PlainEngine:
    return PlainEngine(training.model, training.layers, training.inputs, training.labels, training.optimisation)


def _build(name: str, training: Training, rule: Rule) -> FusedEngine | StackedEngine:
    data = training.inputs, training.labels
    if name == "stacked":
        return StackedEngine(training.model, training.layers, *data, training.optimisation)
    if training.local_steps > 1:
        raise InvalidSetting(
            f"the fused engine computes one local step, not client.local_steps = {training.local_steps}"
        )
    if isinstance(rule, Memory):
        raise InvalidSetting("the fused engine computes sums, but the rule 'memory' needs each client's own update")
    engine = FusedEngine(training.model, training.layers, *data, training.optimisation)
    if isinstance(rule, InverseProbability) and not engine.layers_apart:
        raise InvalidSetting(
            "one operation of the model belongs to several layers, which the fused engine cannot weigh apart for "
            "'inverse-probability'"
        )
    return engine


def _check(engine: Engine, training: Training) -> None:
    """Raise `UnsuitableModel` unless an engine gives what the plain one gives, for a few clients of all depths."""
    tasks = _sample_tasks(training)
    weights = {name: value.detach() for name, value in training.model.state_dict().items()}
    states = []
    for each in (engine, _plain(training)):
        running = Aggregation(weights, training.layers, Contributors())
        try:
            with torch.random.fork_rng(devices=[]):
                each.contribute(weights, tasks, running)
        except Exception as error:  # whatever a transformation of the user's model raises
            text = " ".join(str(error).split())[:200]
            raise UnsuitableModel(_failure(engine, training), [f"{type(error).__name__}: {text}"]) from error
        states.append(running.finish().state)
    for layer in training.layers:
        moved, seen = _difference(layer.parameters, states, weights), _difference(layer.buffers, states, None)
        if max(moved, seen) > _TOLERANCE:
            raise UnsuitableModel(
                _failure(engine, training), [f"layer '{layer.name}' comes out otherwise than client by client"]
            )


def _failure(engine: Engine, training: Training) -> str:
    return f"{type(training.model).__name__} cannot be trained by the {engine.name} engine"


def _difference(
    names: tuple[str, ...], states: Sequence[Mapping[str, Tensor]], since: Mapping[str, Tensor] | None
) -> float:
    """Return the largest difference of tensors, relative to the largest value, or to the largest change `since`."""
    one, other = states
    found, size = 0.0, 0.0
    for name in names:
        rounding = 0.0
        moved = other[name].double()
        if since is not None:
            moved = moved - since[name].double()
            rounding = 8 * torch.finfo(since[name].dtype).eps * float(since[name].double().abs().max())
        size = max(size, float(moved.abs().max()))
        found = max(found, float((one[name].double() - other[name].double()).abs().max()) - rounding)
    return 0.0 if found <= 0 else found / size if size else np.inf


def _sample_tasks(training: Training) -> Tasks:
    """Return tasks of clients that get to various depths in their last step, from none of the layers to all."""
    layers, steps = len(training.layers), min(2, training.local_steps)
    depths = min(_CHECKED_DEPTHS, layers * steps + 1)
    # Two clients of each depth: what mixes examples shows only between clients that are computed together.
    done = np.repeat(np.unique(np.linspace(0, layers * steps, depths).round().astype(np.int64)), 2)
    counts = (done[:, None] + np.arange(layers)) // layers
    stream = seeds.stream(0, "engine-check")
    batches = stream.integers(len(training.inputs), size=(len(done), steps, training.batch_size))
    return Tasks(np.arange(len(done)), counts, batches, np.full(len(done), training.batch_size), 0, 0)
