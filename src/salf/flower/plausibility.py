"""Whether an update's values are those of training at all; finite is not enough to be let into a model."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from salf.errors import InvalidUpdate
from salf.layers import Layers
from salf.updates import Update

# Statistics of a batch follow the scale of the data, which nobody bounds; beyond this they are no statistics.
_BUFFER_LIMIT = 1e6
_COUNTER_LIMIT = 2**40


def check_plausible(update: Update, layers: Layers, state: Mapping[str, Tensor], max_change: float) -> None:
    """Raise `InvalidUpdate`, listing every problem, for values that are finite and yet cannot come from training.

    The root mean square of a layer's change may be `max_change` times that of its weights, or `max_change` where these
    are smaller than 1. Buffers may be at most a million (or a million times what they were), counters may grow by
    2^40, and a variance cannot be negative. It takes an update whose shapes are those of `state`.
    """
    problems = [*_changes(update, layers, state, max_change), *_buffers(update, state)]
    if problems:
        raise InvalidUpdate("this update cannot come from training", problems)


def _changes(update: Update, layers: Layers, state: Mapping[str, Tensor], limit: float) -> Iterator[str]:
    for layer in layers:
        if not update.conveys(layer):
            continue
        changed = _root_mean_square([update.deltas[name] for name in layer.parameters])
        usual = max(1.0, _root_mean_square([state[name] for name in layer.parameters]))
        if not changed <= limit * usual:
            yield f"layer '{layer.name}' changes by {changed:.3g} on average, more than {limit:g} times its weights"


def _buffers(update: Update, state: Mapping[str, Tensor]) -> Iterator[str]:
    for name, value in update.buffers.items():
        if not value.numel():
            continue
        old = state[name]
        if not value.is_floating_point():
            if not 0 <= int(value.max()) - int(old.max()) <= _COUNTER_LIMIT and value.dtype is not torch.bool:
                yield f"counter '{name}' goes from {int(old.max())} to {int(value.max())}"
            continue
        if not float(value.abs().max()) <= _BUFFER_LIMIT * max(1.0, float(old.abs().max())):
            yield f"buffer '{name}' reaches {float(value.abs().max()):.3g}"
        elif name.endswith("running_var") and float(value.min()) < 0:
            yield f"'{name}' holds a negative variance"


def _root_mean_square(tensors: list[Tensor]) -> float:
    count = sum(tensor.numel() for tensor in tensors)
    # In double precision, in which the square of no single-precision number overflows.
    squares = sum(float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2 for tensor in tensors)
    return float((squares / max(count, 1)) ** 0.5)
