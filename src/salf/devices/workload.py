"""What a client computes in a round, when it finishes which part, and the protocol of device models."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from salf.devices.cohort import Cohort
from salf.values import Floats, Ints, LayerCosts, validated

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

    def steps_by(self, seconds: float) -> Ints:
        """Count the steps of each layer that are sent within `seconds`, shape (clients, layers)."""
        return np.asarray((self.sent <= seconds).sum(axis=1), dtype=np.int64)

    def steps_ready_by(self, seconds: float) -> Ints:
        """Count the steps of each layer whose gradient is complete within `seconds`, shape (clients, layers)."""
        return np.asarray((self.ready <= seconds).sum(axis=1), dtype=np.int64)


@validated
class Devices(ABC):
    """A model of how long the devices of a federation take, as a frozen value whose fields are its settings.

    A model must define `times` and `typical_seconds`, and give `kind` a default. All random numbers come from the
    cohort, so that they do not depend on which other clients are drawn.

    >>> from typing import Literal
    >>> import numpy as np
    >>> @validated
    ... class Constant(Devices):
    ...     kind: Literal["constant"] = "constant"
    ...     layer_seconds: float = 1.0
    ...
    ...     def times(self, workload, cohort):
    ...         done = np.cumsum(workload.shares[::-1])[::-1] * self.layer_seconds
    ...         steps = np.arange(workload.local_steps)[:, None] * done[0] + done
    ...         ready = np.broadcast_to(steps, (len(cohort.clients), *steps.shape))
    ...         return CompletionTimes(ready, ready, ready[:, -1, 0])
    ...
    ...     def typical_seconds(self, workload):
    ...         return self.layer_seconds * workload.costs.num_layers * workload.local_steps
    >>> from salf.values import LayerCosts
    >>> work = Workload(LayerCosts(forward=1.0, backward=(2.0, 2.0), layer_bytes=(8, 8)), local_steps=1)
    >>> Constant().times(work, Cohort(np.arange(3), population=3, round=1, seed=0)).whole
    array([2., 2., 2.])
    """

    kind: str

    @abstractmethod
    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Draw when each client of a cohort finishes each layer of each step.

        A client's times must not depend on the other clients of the cohort, which may be those of several rounds.
        """

    @abstractmethod
    def typical_seconds(self, workload: Workload) -> float:
        """Return how long the workload takes an ordinary device; this is the default deadline."""

    def reach(self, workload: Workload, cohort: Cohort, deadline_seconds: float) -> Floats | None:
        """Return the true chance of each client to reach each layer, shape (clients, layers).

        None if it has no closed form; methods then observe it.
        """
        return None
