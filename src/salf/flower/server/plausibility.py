"""Whether an update's values are those of training at all; finite is not enough to be let into a model."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from salf.aggregation import norm_of
from salf.errors import InvalidUpdate
from salf.layers import Layers
from salf.update import Update

# Statistics of a batch follow the scale of the data, which nobody bounds; beyond this they are no statistics.
_BUFFER_LIMIT = 1e6
_COUNTER_LIMIT = 2**40


class Plausibility:
    """What updates of one round are held against: the layers and weights that they start from.

    The root mean square of a layer's change may be `max_change` times that of its weights, or `max_change` where these
    are smaller than 1. Buffers may be at most a million (or a million times what they were), counters may grow by
    2^40, and a variance cannot be negative.
    """

    def __init__(self, layers: Layers, state: Mapping[str, Tensor], max_change: float) -> None:
        self._layers, self._state, self._max_change = layers, state, max_change
        self._usual = {
            layer.name: max(1.0, _root_mean_square([state[name] for name in layer.parameters])) for layer in layers
        }

    def check(self, update: Update) -> None:
        """Raise `InvalidUpdate`, listing every problem, unless `update`, whose shapes are right, may be training's.

        What it accepts is finite: of other values no norm is.
        """
        problems = [*self._changes(update), *_buffers(update, self._state)]
        if problems:
            raise InvalidUpdate("this update cannot come from training", problems)

    def _changes(self, update: Update) -> Iterator[str]:
        for layer in self._layers:
            if not update.conveys(layer):
                continue
            changed = _root_mean_square([update.deltas[name] for name in layer.parameters])
            if not (math.isfinite(changed) and changed <= self._max_change * self._usual[layer.name]):
                yield (
                    f"layer '{layer.name}' changes by {changed:.3g} on average, "
                    f"more than {self._max_change:g} times its weights"
                )


def _buffers(update: Update, state: Mapping[str, Tensor]) -> Iterator[str]:
    for name, value in update.buffers.items():
        if not value.numel():
            continue
        old = state[name]
        if not (value.is_floating_point() or value.is_complex()):
            if not 0 <= int(value.max()) - int(old.max()) <= _COUNTER_LIMIT and value.dtype is not torch.bool:
                yield f"counter '{name}' goes from {int(old.max())} to {int(value.max())}"
            continue
        most = float(value.abs().max())
        if not (math.isfinite(most) and most <= _BUFFER_LIMIT * max(1.0, float(old.abs().max()))):
            yield f"buffer '{name}' reaches {most:.3g}"
        elif name.endswith("running_var") and float(value.min()) < 0:
            yield f"'{name}' holds a negative variance"


def _root_mean_square(tensors: list[Tensor]) -> float:
    count = sum(tensor.numel() for tensor in tensors)
    norms = [float(torch.linalg.vector_norm(tensor)) for tensor in tensors]
    if math.inf in norms:  # the square of a finite number may overflow; double precision takes four times as long
        norms = [norm_of(tensor) for tensor in tensors]
    return math.hypot(*norms) / math.sqrt(max(count, 1))
