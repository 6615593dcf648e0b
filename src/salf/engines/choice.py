"""Which engine computes a run, and whether it can be trusted with the model."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from salf import seeds
from salf.aggregation import Aggregation, Contributors, InverseProbability, Memory, Rule
from salf.engines.accelerator import fork_rng
from salf.engines.fused import FusedEngine
from salf.engines.plain import PlainEngine
from salf.engines.stacked import StackedEngine
from salf.engines.tasks import Engine, OptimizerSettings, Tasks, train_round
from salf.errors import InvalidSetting, UnsuitableModel
from salf.layers import Layers
from salf.values import LayerCosts

EngineName = Literal["auto", "plain", "fused", "stacked", "flower"]

# Above so many operations per example, a client's own work outweighs what it costs to begin each of them.
_STACKED_UP_TO_FLOPS = 3e5
# The fused engine holds the updates of all clients of a round at once where each is needed: only small ones.
_APART_UP_TO_BYTES = 4 * 2**20
_CHECKED_DEPTHS = 5
_CHECKED_BATCH, _CHECKED_EXAMPLES = 4, 64
# In single precision rounding alone may come to per cents, deep below layers of batch normalisation.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


@dataclass(frozen=True)
class Training:
    """What the clients of a run train, on what, and how; `batch_size` is the largest that occurs."""

    model: nn.Module
    layers: Layers
    costs: LayerCosts
    inputs: Tensor
    labels: Tensor
    optimisation: OptimizerSettings
    batch_size: int
    local_steps: int


def choose_engine(name: EngineName, training: Training, rule: Rule | None, *, skips_layers: bool = False) -> Engine:
    """Return the engine called `name`, or with "auto" the one that suits the run best.

    Without a `rule` clients train one by one, as their turn comes, and there is nothing to choose. `skips_layers` says
    that a client may convey a layer without those behind it.

    The choice depends on the run alone, not on how fast this machine is, so that a run is the same wherever it is
    resumed. An engine that does many clients at once is tried on a few of them beside the plain one first. If their
    results differ "auto" warns and goes on with the plain engine; an engine that was asked for by name raises
    `InvalidSetting`.
    """
    if name == "flower":
        raise InvalidSetting(
            "engine is 'flower', whose clients run under Flower: use salf run --engine flower, or in Python "
            "salf.flower.run_on_flower(experiment)"
        )
    if rule is None:
        return _plain(training)
    if skips_layers and name == "fused":
        raise InvalidSetting(
            "engine is 'fused', which computes layers from the output on, but by this method clients leave out some of "
            "those; choose 'auto' or 'plain'"
        )
    wanted = _best(training, rule, skips_layers=skips_layers) if name == "auto" else name
    if wanted == "plain":
        return _plain(training)
    try:
        engine = _build(wanted, training, rule)
        _check(wanted, training, rule)
    except (InvalidSetting, UnsuitableModel) as error:
        if name != "auto":
            raise InvalidSetting(f"engine is '{name}': {error}; choose 'auto' or 'plain'") from error
        warnings.warn(f"simulated one client after another, which is slow: {error}", stacklevel=2)
        return _plain(training)
    return engine


def _best(training: Training, rule: Rule, *, skips_layers: bool) -> Literal["plain", "fused", "stacked"]:
    sums = training.local_steps == 1 and training.optimisation.optimizer == "sgd" and not skips_layers
    if sums and (not isinstance(rule, Memory) or _tells_clients_apart(training)):
        return "fused"
    return "stacked" if training.costs.forward <= _STACKED_UP_TO_FLOPS else "plain"


def _tells_clients_apart(training: Training) -> bool:
    """Say whether the fused engine can tell the clients' updates apart, and all of them take little memory."""
    if sum(training.costs.layer_bytes) > _APART_UP_TO_BYTES:
        return False
    try:
        return _fused(training).clients_apart
    except UnsuitableModel:
        return False


def _fused(training: Training) -> FusedEngine:
    return FusedEngine(training.model, training.layers, training.inputs, training.labels, training.optimisation)


def _plain(training: Training) -> PlainEngine:
    return PlainEngine(training.model, training.layers, training.inputs, training.labels, training.optimisation)


def _build(name: str, training: Training, rule: Rule) -> FusedEngine | StackedEngine:
    if name == "stacked":
        data = training.inputs, training.labels
        return StackedEngine(training.model, training.layers, *data, training.optimisation)
    if training.local_steps > 1:
        raise InvalidSetting(
            f"the fused engine computes one local step, not client.local_steps = {training.local_steps}"
        )
    engine = _fused(training)
    if isinstance(rule, Memory) and not engine.clients_apart:
        raise InvalidSetting(
            "of this model the fused engine computes sums, but the rule 'memory' needs each client's own update"
        )
    if isinstance(rule, InverseProbability) and not engine.layers_apart:
        raise InvalidSetting(
            "one operation of the model belongs to several layers, which the fused engine cannot weigh apart for "
            "'inverse-probability'"
        )
    return engine


def _check(name: str, training: Training, rule: Rule) -> None:
    """Raise `UnsuitableModel` unless an engine gives what the plain one gives, for a few clients of all depths.

    They are compared in double precision, or in single precision where the model computes in no other.
    """
    failed = f"{type(training.model).__name__} cannot be trained by the {name} engine"
    precision = torch.float64
    sample, tasks = _sample(training, double=True), _sample_tasks(training)
    try:
        expected = _play(_plain(sample), sample, tasks, rule)
    except (RuntimeError, TypeError, ValueError):
        precision, sample = torch.float32, _sample(training, double=False)
        expected = _play(_plain(sample), sample, tasks, rule)
    try:
        found = _play(_build(name, sample, rule), sample, tasks, rule)
    except Exception as error:  # whatever a transformation of the user's model raises
        text = " ".join(str(error).split())[:200]
        raise UnsuitableModel(failed, [f"{type(error).__name__}: {text}"]) from error
    weights = sample.model.state_dict()
    for layer in training.layers:
        moved = _difference(layer.parameters, (found, expected), weights)
        seen = _difference(layer.buffers, (found, expected), None)
        if max(moved, seen) > _TOLERANCE[precision]:
            raise UnsuitableModel(failed, [f"layer '{layer.name}' comes out otherwise than client by client"])


def _play(engine: Engine, training: Training, tasks: Tasks, rule: Rule) -> dict[str, Tensor]:
    """Return the global weights after one round, by a rule that needs what the given one does."""
    weights = {name: value.detach() for name, value in training.model.state_dict().items()}
    alike = Memory() if isinstance(rule, Memory) else Contributors()
    with fork_rng(training.inputs.device):
        result, _ = train_round(engine, weights, tasks, lambda: Aggregation(weights, training.layers, alike))
    return result.state


def _sample(training: Training, *, double: bool) -> Training:
    """Return the same training on a few examples."""
    chosen = seeds.stream(0, "engine-check").integers(len(training.inputs), size=_CHECKED_EXAMPLES)
    index = torch.from_numpy(chosen).to(training.inputs.device)
    inputs, model = training.inputs[index], copy.deepcopy(training.model)
    if double:
        model = model.double()
        inputs = inputs.double() if inputs.is_floating_point() else inputs
    return replace(training, model=model, inputs=inputs, labels=training.labels[index])


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
    batch = min(training.batch_size, _CHECKED_BATCH)
    batches = np.arange(len(done) * steps * batch).reshape(len(done), steps, batch) % _CHECKED_EXAMPLES
    return Tasks(np.arange(len(done)), counts, batches, np.full(len(done), batch), 0, 0)
