"""What every device model is."""

from abc import ABC, abstractmethod

from salf.devices.cohort import Cohort
from salf.devices.workload import CompletionTimes, Workload
from salf.values import Floats, validated


@validated
class Devices(ABC):
    """A model of how long the devices of a federation take."""

    kind: str

    @abstractmethod
    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Draw when the clients of a round finish what: each for itself, since those of several rounds may be asked."""

    @abstractmethod
    def typical_seconds(self, workload: Workload) -> float:
        """Return how long an ordinary device takes for the whole job: the deadline where none is given."""

    def reach(self, workload: Workload, cohort: Cohort, deadline_seconds: float) -> Floats | None:
        """Return the true chance of each client to reach each layer, shape (clients, layers).

        None where it has no closed form and must be observed.
        """
        return None
