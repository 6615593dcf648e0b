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

from salf.aggregation import ClippedLayers as ClippedLayers, Median as Median, TrimmedMean as TrimmedMean
from salf.flower.client import deadline as deadline, reply as reply
from salf.flower.server import (
    Adaptive as Adaptive,
    DeadlineSchedule as DeadlineSchedule,
    FederationRecord as FederationRecord,
    Fixed as Fixed,
    Quantile as Quantile,
    RoundDeadline as RoundDeadline,
    RoundTimes as RoundTimes,
    SalfStrategy as SalfStrategy,
)
from salf.flower.simulation_engine import run_on_flower as run_on_flower
from salf.flower.wire import to_record as to_record
