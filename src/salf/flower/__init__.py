"""salf on Flower: two lines on the client, one on the server, and a round's deadline loses no work.

Needs the extra `flower` (`pip install 'salf[flower]'`).
"""

from salf.aggregation.robust import ClippedLayers as ClippedLayers
from salf.aggregation.robust import Median as Median
from salf.aggregation.robust import TrimmedMean as TrimmedMean
from salf.flower.client import deadline as deadline
from salf.flower.client import reply as reply
from salf.flower.server.deadlines import Adaptive as Adaptive
from salf.flower.server.deadlines import DeadlineSchedule as DeadlineSchedule
from salf.flower.server.deadlines import Fixed as Fixed
from salf.flower.server.deadlines import Quantile as Quantile
from salf.flower.server.deadlines import RoundDeadline as RoundDeadline
from salf.flower.server.deadlines import RoundTimes as RoundTimes
from salf.flower.server.record import FederationRecord as FederationRecord
from salf.flower.server.strategy import SalfStrategy as SalfStrategy
from salf.flower.simulated import run_on_flower as run_on_flower

try:
    import flwr as _flwr  # noqa: F401 - to tell at once, and in one line, that it is missing
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("salf.flower needs Flower; install it with: pip install 'salf[flower]'") from error
