"""The protocol of device models."""

from abc import ABC, abstractmethod

from salf.devices.cohort import Cohort
from salf.devices.workload import CompletionTimes, Workload
from salf.values import Floats, validated


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
