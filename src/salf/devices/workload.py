"""What a client is asked to do, and when it gets how far."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from salf.values import Floats, LayerCosts

Kept = TypeVar("Kept", bound=npt.NDArray[Any])


@dataclass(frozen=True)
class Workload:
    """What a client is asked to do in one round: `local_steps` optimizer steps on a model of these costs.

    Backpropagation goes through the last `depth` layers (None: all); those before them are frozen. The last `skipped`
    layers are not trained, but passed through: only their input gradients are computed. `whole` are the
    costs of the model that the federation trains, where the client is given a narrower one: device models state their
    times for that.
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
        return _constant((places >= first) & (places < layers - self.skipped))

    @cached_property
    def backward(self) -> Floats:
        """The operations of each layer's backward pass, none for a frozen one; shape (layers,)."""
        costs = np.asarray(self.costs.backward, dtype=np.float64)
        trained = costs * self.trained
        if self.skipped:
            passing = costs / 2 if self.costs.passing is None else np.asarray(self.costs.passing, dtype=np.float64)
            trained[-self.skipped :] = passing[-self.skipped :]
        return _constant(trained)

    @cached_property
    def upload_bytes(self) -> Floats:
        """What conveying each layer sends, nothing for a frozen one; shape (layers,)."""
        return _constant(np.asarray(self.costs.layer_bytes, dtype=np.float64) * self.trained)

    @cached_property
    def shares(self) -> Floats:
        """Each layer's backward operations relative to those of the federation's model, shape (layers,)."""
        whole = np.asarray((self.whole or self.costs).backward, dtype=np.float64)
        return _constant(np.divide(self.backward, whole, out=self.trained.astype(np.float64), where=whole > 0))


def _constant(array: Kept) -> Kept:
    """Refuse to be written to from now on: it is kept, and given to everyone who asks."""
    array.setflags(write=False)
    return array


@dataclass(frozen=True)
class CompletionTimes:
    """When each layer of each local step is finished, in seconds from the start of the round.

    `ready` and `conveyed` have shape (clients, local steps, layers): when the layer's gradient is complete, and when
    it would have reached the server had the client stopped there. `whole`, of shape (clients,), is when a client has
    conveyed its whole job. Infinite means never. `give_up_seconds` is how long somebody who waits for everyone waits
    for those.

    `received`, of shape (clients,), is when the model has arrived, `forwarded`, of shape (clients, local steps), when
    each step's forward pass is done; None where the device model gives no time to them. They are for drawing only.
    """

    ready: Floats
    conveyed: Floats
    whole: Floats
    give_up_seconds: float = np.inf
    received: Floats | None = None
    forwarded: Floats | None = None

    def of(self, rows: slice) -> "CompletionTimes":
        """Return the times of some of the clients."""
        ready = self.ready[rows]
        return CompletionTimes(
            ready,
            ready if self.conveyed is self.ready else self.conveyed[rows],
            self.whole[rows],
            self.give_up_seconds,
            None if self.received is None else self.received[rows],
            None if self.forwarded is None else self.forwarded[rows],
        )

    def steps_by(self, seconds: float) -> npt.NDArray[np.int64]:
        """Count the steps of each layer that are conveyed within `seconds`, shape (clients, layers)."""
        return np.asarray((self.conveyed <= seconds).sum(axis=1), dtype=np.int64)

    def steps_ready_by(self, seconds: float) -> npt.NDArray[np.int64]:
        """Count the steps of each layer whose gradient is complete within `seconds`, shape (clients, layers)."""
        return np.asarray((self.ready <= seconds).sum(axis=1), dtype=np.int64)
