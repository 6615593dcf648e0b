"""Federations of real devices: salf on Flower.

Two lines on the client (`deadline` around the training loop, `reply` at its end) and one on the server (`SalfStrategy`
around a Flower strategy) let every round end at a deadline without losing the finished work of slow nodes.
`run_on_flower` runs a simulated experiment with its clients on Flower's simulation engine.

The package needs the extra `flower`: `pip install 'salf[flower]'`.
"""

from importlib.util import find_spec

if find_spec("flwr") is None:
    raise ModuleNotFoundError(
        "salf.flower needs Flower, which is not installed; install it: pip install 'salf[flower]'"
    )

from salf.aggregation import ClippedLayers as ClippedLayers
from salf.aggregation import Median as Median
from salf.aggregation import TrimmedMean as TrimmedMean
from salf.flower.client import deadline as deadline
from salf.flower.client import reply as reply
from salf.flower.server import Adaptive as Adaptive
from salf.flower.server import DeadlineSchedule as DeadlineSchedule
from salf.flower.server import FederationRecord as FederationRecord
from salf.flower.server import Fixed as Fixed
from salf.flower.server import Quantile as Quantile
from salf.flower.server import RoundDeadline as RoundDeadline
from salf.flower.server import RoundTimes as RoundTimes
from salf.flower.server import SalfStrategy as SalfStrategy
from salf.flower.simulation_engine import run_on_flower as run_on_flower
