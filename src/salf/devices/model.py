"""What every device model is."""

from abc import ABC, abstractmethod

from pydantic.dataclasses import dataclass as validated

from salf.devices.cohort import Cohort
from salf.devices.job import Job, Times
from salf.values import STRICT, Floats


@validated(frozen=True, kw_only=True, config=STRICT)
class Devices(ABC):
    """A model of how long the devices of a federation take."""

    @abstractmethod
    def times(self, job: Job, cohort: Cohort) -> Times:
        """Draw when the clients of a round finish what: each for itself, since those of several rounds may be asked."""

    @abstractmethod
    def typical_seconds(self, job: Job) -> float:
        """Return how long an ordinary device takes for the whole job: the deadline where none is given."""

    def reach(self, job: Job, cohort: Cohort, deadline_seconds: float) -> Floats | None:  # noqa: ARG002
        """Return the true chance of each client to reach each layer, shape (clients, layers).

        None where it has no closed form and must be observed.
        """
        return None
