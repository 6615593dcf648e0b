"""The check of a client's update before it may enter the model: its form, and whether training can have made it."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from salf.aggregation import ClippedLayers, norm_of
from salf.errors import InvalidUpdate
from salf.layers import Layers
from salf.update import Update, check_names, check_update

# Running statistics follow the scale of the data, which has no bound; beyond this limit they are no statistics.
_BUFFER_LIMIT = 1e6
_COUNTER_LIMIT = 2**40


class UpdateValidator:
    """The check of the updates of one round against the model that was sent.

    In the root mean square, a layer may change by `max_change` times its weights, or by `max_change` if these are
    smaller than 1. A buffer may reach a million times its old value, or a million. A counter may grow by 2^40. A
    variance cannot be negative.

    Args:
        layers: The layers of the model.
        state: The global model that was sent.
        max_change: The limit on the change of a layer, greater than 0.
        clipping: A bound on the norm of each layer's change, applied to updates that pass.

    >>> from salf import Layer
    >>> layers = Layers((Layer("head", ("weight",)),))
    >>> validator = UpdateValidator(layers, {"weight": torch.zeros(2)}, max_change=10.0)
    >>> validator.validate(Update({"weight": torch.ones(2)}, 1, 5)).num_examples
    5
    >>> validator.validate(Update({"weight": torch.full((2,), 11.0)}, 1, 5))
    Traceback (most recent call last):
    salf.errors.InvalidUpdate: ...: layer 'head' changes by 11 on average, more than 10 times its weights
    """

    def __init__(
        self, layers: Layers, state: Mapping[str, Tensor], max_change: float, clipping: ClippedLayers | None = None
    ) -> None:
        self.layers, self.state = layers, state
        self._max_change, self._clipping = max_change, clipping
        self._usual = {
            layer.name: max(1.0, _root_mean_square([state[name] for name in layer.parameters])) for layer in layers
        }

    def validate(self, update: Update) -> Update:
        """Return an update as it may enter the model.

        Args:
            update: An update that `read_reply` returned: its shapes and types are right.

        Raises:
            InvalidUpdate: The update must not enter the model; the error lists every problem.
        """
        check_names(update, self.layers)
        problems = [*self._changes(update), *_buffers(update, self.state)]
        if problems:
            check_update(update, self.layers, self.state)  # describes values that are not finite better
            raise InvalidUpdate(
                "this update cannot come from training; check the client's learning rate and data", problems
            )
        return update if self._clipping is None else self._clipping.clip(update, self.layers)

    def _changes(self, update: Update) -> Iterator[str]:
        """Yield the layers that change too much; values that are not finite have no norm within the limit."""
        for layer in self.layers:
            if not update.conveys(layer):
                continue
            changed = _root_mean_square([update.deltas[name] for name in layer.parameters])
            if not (math.isfinite(changed) and changed <= self._max_change * self._usual[layer.name]):
                yield (
                    f"layer '{layer.name}' changes by {changed:.3g} on average, "
                    f"more than {self._max_change:g} times its weights"
                )


def _buffers(update: Update, state: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the buffers that are no statistics: too large, not finite, or a negative variance."""
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
    """Return the root mean square of several tensors' values; infinity or NaN if a value is not finite."""
    count = sum(tensor.numel() for tensor in tensors)
    norms = [float(torch.linalg.vector_norm(tensor)) for tensor in tensors]
    if math.inf in norms:  # the square of a finite number may overflow; double precision takes four times as long
        norms = [norm_of(tensor) for tensor in tensors]
    return math.hypot(*norms) / math.sqrt(max(count, 1))
