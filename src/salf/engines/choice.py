"""The choice of the engine of a run, and the check that it computes the model correctly."""

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from salf import seeds
from salf.aggregation import Aggregation, Contributors, Rule, Weights
from salf.engines.accelerator import fork_rng
from salf.engines.fused import FusedEngine
from salf.engines.plain import PlainEngine
from salf.engines.stacked import StackedEngine
from salf.engines.tasks import REMEDY, Engine, Tasks, Training, train_round
from salf.errors import InvalidSetting, UnsuitableModel

EngineName = Literal["auto", "plain", "fused", "stacked", "flower"]

# Above this many operations per example, computing a client takes longer than launching its operations.
_STACKED_UP_TO_FLOPS = 3e5
# The fused engine holds the individual updates of all clients of a round at once: only for small models.
_APART_UP_TO_BYTES = 4 * 2**20
_CHECKED_DEPTHS = 5
_CHECKED_BATCH, _CHECKED_EXAMPLES = 4, 64
# In single precision rounding alone can reach a few per cent, deep below layers of batch normalization.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


@dataclass(frozen=True)
class _CheckedMean(Contributors):
    """The rule with which engines are checked; it needs individual updates where the run's rule does."""

    individual: bool = False

    @property
    def needs_individual_updates(self) -> bool:
        return self.individual


def choose_engine(name: EngineName, training: Training, rule: Rule | None, *, skips_layers: bool = False) -> Engine:
    """Return the engine called `name`, or with "auto" the one that suits the run best.

    The choice depends on the run alone, not on the speed of the machine, so that a resumed run uses the same engine
    everywhere. An engine that computes many clients at once is first compared with the plain one on a few clients. If
    their results differ, "auto" warns and uses the plain engine.

    Args:
        name: The setting `engine`.
        training: What the clients train, on what and how.
        rule: The rule of the run; None for an asynchronous method, whose clients train one at a time.
        skips_layers: Whether a client may send a layer without the layers behind it.

    Raises `InvalidSetting` if the named engine cannot compute the run.

    >>> from torch import nn
    >>> from salf.engines import OptimizerSettings
    >>> from salf.layers import find_layers, measure_costs
    >>> model, inputs, labels = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.rand(8, 2), torch.arange(8) % 2
    >>> layers = find_layers(model)
    >>> costs = measure_costs(model, inputs, layers)
    >>> one_step = Training(model, layers, costs, inputs, labels, OptimizerSettings(), batch_size=2, local_steps=1)
    >>> choose_engine("auto", one_step, Contributors()).name
    'fused'
    """
    _check_name(name, skips_layers=skips_layers and rule is not None)
    if rule is None:
        return PlainEngine(training)
    wanted = _best(training, rule, skips_layers=skips_layers) if name == "auto" else name
    if wanted == "plain":
        return PlainEngine(training)
    try:
        engine = _build(wanted, training, rule)
        _check(wanted, training, rule)
    except (InvalidSetting, UnsuitableModel) as error:
        reason = str(error).removesuffix(REMEDY)
        if name != "auto":
            raise InvalidSetting(f"engine is '{name}': {reason}{REMEDY}") from error
        warnings.warn(f"simulated one client after another, which is slow: {reason}", stacklevel=2)
        return PlainEngine(training)
    return engine


def _check_name(name: EngineName, *, skips_layers: bool) -> None:
    """Raise `InvalidSetting` for an engine that no simulation of this method can use."""
    if name == "flower":
        raise InvalidSetting(
            "engine is 'flower'; use salf run --engine flower, or salf.flower.run_on_flower(experiment)"
        )
    if skips_layers and name == "fused":
        raise InvalidSetting(
            f"engine is 'fused', which computes layers from the output on, but the method skips some{REMEDY}"
        )


def _best(training: Training, rule: Rule, *, skips_layers: bool) -> Literal["plain", "fused", "stacked"]:
    one_step = training.local_steps == 1 and training.optimizer.optimizer == "sgd" and not skips_layers
    if one_step and (not rule.needs_individual_updates or _computes_individual_updates(training)):
        return "fused"
    return "stacked" if training.costs.forward <= _STACKED_UP_TO_FLOPS else "plain"


def _computes_individual_updates(training: Training) -> bool:
    """Say whether the fused engine can compute each client's own update, in little memory."""
    if sum(training.costs.layer_bytes) > _APART_UP_TO_BYTES:
        return False
    try:
        return FusedEngine(training).clients_apart
    except UnsuitableModel:
        return False


def _build(engine_name: str, training: Training, rule: Rule) -> FusedEngine | StackedEngine:
    """Return the engine called `engine_name`. Raises `InvalidSetting` if it cannot compute the run."""
    if engine_name == "stacked":
        return StackedEngine(training)
    if training.local_steps > 1:
        raise InvalidSetting(
            f"the fused engine computes one step, not client.local_steps = {training.local_steps}{REMEDY}"
        )
    engine, name = FusedEngine(training), type(rule).__name__
    if rule.needs_individual_updates and not engine.clients_apart:
        raise InvalidSetting(f"the fused engine only sums this model's updates, but {name} needs each client's{REMEDY}")
    if rule.weighs_layers and not engine.layers_apart:
        raise InvalidSetting(f"one operation of the model belongs to several layers, which {name} weighs apart{REMEDY}")
    return engine


def _check(name: str, training: Training, rule: Rule) -> None:
    """Raise `UnsuitableModel` unless an engine agrees with the plain one on a few clients of all depths.

    They are compared in double precision, or in single precision if the model computes in no other.
    """
    failed = f"{type(training.model).__name__} cannot be trained by the {name} engine"
    precision = torch.float64
    sample, tasks = _sample(training, double=True), _sample_tasks(training)
    try:
        expected = _state_after(PlainEngine(sample), sample, tasks, rule)
    except (RuntimeError, TypeError, ValueError):
        precision, sample = torch.float32, _sample(training, double=False)
        expected = _state_after(PlainEngine(sample), sample, tasks, rule)
    try:
        found = _state_after(_build(name, sample, rule), sample, tasks, rule)
    except Exception as error:  # whatever a transformation of the user's model raises
        text = " ".join(str(error).split())[:200]
        raise UnsuitableModel(failed, [f"{type(error).__name__}: {text}{REMEDY}"]) from error
    weights = sample.model.state_dict()
    for layer in training.layers:
        moved = _difference(layer.parameters, found, expected, weights)
        seen = _difference(layer.buffers, found, expected, None)
        if max(moved, seen) > _TOLERANCE[precision]:
            raise UnsuitableModel(failed, [f"layer '{layer.name}' differs from what the plain engine computes{REMEDY}"])


def _state_after(engine: Engine, training: Training, tasks: Tasks, rule: Rule) -> dict[str, Tensor]:
    """Return the global state after one round, by a rule that needs individual updates if the given one does."""
    weights = {name: value.detach() for name, value in training.model.state_dict().items()}
    mean = _CheckedMean(individual=rule.needs_individual_updates)
    with fork_rng(training.inputs.device):
        result, _ = train_round(engine, weights, tasks, lambda: Aggregation(weights, training.layers, mean))
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


def _difference(names: tuple[str, ...], found: Weights, expected: Weights, since: Weights | None) -> float:
    """Return the largest difference between two states, beyond rounding.

    Args:
        names: The tensors to compare.
        found: One state.
        expected: The other state.
        since: If given, differences are relative to the largest change since this state, else to the largest value.
    """
    error, size = 0.0, 0.0
    for name in names:
        right, rounding, start = _finite(expected[name]), 0.0, torch.zeros(())
        if since is not None:
            start = since[name].double()
            rounding = 8 * torch.finfo(since[name].dtype).eps * float(start.abs().max())
        size = max(size, float((right - start).abs().max()))
        error = max(error, float((_finite(found[name]) - right).abs().max()) - rounding)
    return 0.0 if error <= 0 else error / size if size else np.inf


def _finite(values: Tensor) -> Tensor:
    """Return values in double precision, 0 where they are not finite, as in a mask."""
    return values.double().nan_to_num(0.0, 0.0, 0.0)


def _sample_tasks(training: Training) -> Tasks:
    """Return tasks of clients that reach various depths in their last step, from no layer to all layers."""
    layers, steps = len(training.layers), min(2, training.local_steps)
    depths = min(_CHECKED_DEPTHS, layers * steps + 1)
    # Two clients of each depth: mixed examples show only between clients that are computed together.
    done = np.repeat(np.unique(np.linspace(0, layers * steps, depths).round().astype(np.int64)), 2)
    counts = (done[:, None] + np.arange(layers)) // layers
    batch = min(training.batch_size, _CHECKED_BATCH)
    batches = np.arange(len(done) * steps * batch).reshape(len(done), steps, batch) % _CHECKED_EXAMPLES
    return Tasks(np.arange(len(done)), counts, batches, np.full(len(done), batch), 0, 0)
