"""What a client computes in a round, and when it finishes which part."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from salf.values import Floats, LayerCosts

Array = TypeVar("Array", bound=npt.NDArray[Any])


@dataclass(frozen=True)
class Workload:
    """What a client computes in one round.

    Attributes:
        costs: The costs of the model that the client trains.
        local_steps: The number of optimizer steps.
        depth: How many layers backpropagation passes, from the output; those before them are frozen. None: all.
        whole: The costs of the federation's model, if the client trains a narrower one. Device models state times for
            that model.
        skipped: How many layers at the output are not trained. Only their input gradients are computed.

    >>> Workload(LayerCosts(1.0, backward=(2.0, 4.0), layer_bytes=(8, 8)), local_steps=1, depth=1).trained
    array([False,  True])
    """

    costs: LayerCosts
    local_steps: int
    depth: int | None = None
    whole: LayerCosts | None = None
    skipped: int = 0

    @cached_property
    def trained(self) -> npt.NDArray[np.bool_]:
        """Which layers are trained, shape (layers,)."""
        layers = self.costs.num_layers
        places = np.arange(layers)
        first = layers - (layers if self.depth is None else self.depth)
        return _read_only((places >= first) & (places < layers - self.skipped))

    @cached_property
    def backward(self) -> Floats:
        """The operations of each layer's backward pass, none for a frozen one; shape (layers,)."""
        costs = np.asarray(self.costs.backward, dtype=np.float64)
        trained = costs * self.trained
        if self.skipped:
            passing = costs / 2 if self.costs.passing is None else np.asarray(self.costs.passing, dtype=np.float64)
            trained[-self.skipped :] = passing[-self.skipped :]
        return _read_only(trained)

    @cached_property
    def upload_bytes(self) -> Floats:
        """The bytes that a client sends for each layer, none for a frozen one; shape (layers,)."""
        return _read_only(np.asarray(self.costs.layer_bytes, dtype=np.float64) * self.trained)

    @cached_property
    def shares(self) -> Floats:
        """Each layer's backward operations relative to those of the federation's model, shape (layers,)."""
        whole = np.asarray((self.whole or self.costs).backward, dtype=np.float64)
        return _read_only(np.divide(self.backward, whole, out=self.trained.astype(np.float64), where=whole > 0))


def _read_only(array: Array) -> Array:
    """Make an array read-only, since one copy serves all callers."""
    array.setflags(write=False)
    return array


@dataclass(frozen=True)
class CompletionTimes:
    """When each client finishes each layer of each local step, in seconds from the start of the round.

    Infinite means never.

    Attributes:
        ready: When the gradient of a layer is complete, shape (clients, local steps, layers).
        sent: When the layer would reach the server if the client stopped there, of the same shape.
        whole: When the client has sent everything, shape (clients,).
        give_up_seconds: How long a method that waits for all clients waits for those that never answer.
        received: When the model has arrived, shape (clients,); None if that takes no time. For drawing only.
        forwarded: When the forward pass of a step is done, shape (clients, local steps); None as above.
    """

    ready: Floats
    sent: Floats
    whole: Floats
    give_up_seconds: float = np.inf
    received: Floats | None = None
    forwarded: Floats | None = None

    def of(self, rows: slice) -> "CompletionTimes":
        """Return the times of some of the clients."""
        ready = self.ready[rows]
        return CompletionTimes(
            ready,
            ready if self.sent is self.ready else self.sent[rows],
            self.whole[rows],
            self.give_up_seconds,
            None if self.received is None else self.received[rows],
            None if self.forwarded is None else self.forwarded[rows],
        )

    def steps_by(self, seconds: float) -> npt.NDArray[np.int64]:
        """Count the steps of each layer that are sent within `seconds`, shape (clients, layers)."""
        return np.asarray((self.sent <= seconds).sum(axis=1), dtype=np.int64)

    def steps_ready_by(self, seconds: float) -> npt.NDArray[np.int64]:
        """Count the steps of each layer whose gradient is complete within `seconds`, shape (clients, layers)."""
        return np.asarray((self.ready <= seconds).sum(axis=1), dtype=np.int64)
