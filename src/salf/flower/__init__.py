"""salf on Flower: two lines on the client, one on the server, and a round's deadline loses no work.

Needs the extra `flower` (`pip install 'salf[flower]'`).
"""

try:
    import flwr as _flwr  # noqa: F401 - to tell at once, and in one line, that it is missing
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("salf.flower needs Flower; install it with: pip install 'salf[flower]'") from error

from salf.flower.client import deadline as deadline
from salf.flower.client import reply as reply
from salf.flower.deadlines import Adaptive as Adaptive
from salf.flower.deadlines import Fixed as Fixed
from salf.flower.deadlines import Quantile as Quantile
from salf.flower.deadlines import RoundDeadline as RoundDeadline
from salf.flower.deadlines import RoundTimes as RoundTimes
from salf.flower.deadlines import Schedule as Schedule
from salf.flower.record import FederationRecord as FederationRecord
from salf.flower.simulated import run_on_flower as run_on_flower
from salf.flower.strategy import SalfStrategy as SalfStrategy
from salf.robust import ClippedLayers as ClippedLayers
from salf.robust import Median as Median
from salf.robust import TrimmedMean as TrimmedMean
