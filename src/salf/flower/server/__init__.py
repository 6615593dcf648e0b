"""The server's side of a federation on Flower.

`SalfStrategy` wraps a Flower strategy. Its `start` drives a `RoundLoop`, which sends messages over an `Exchange` and
hands the replies to a `FlowerServer`. Each round's replies are checked and summed by a `TrainingRound`.
"""

from salf.flower.server.deadlines import (
    Adaptive as Adaptive,
    DeadlineSchedule as DeadlineSchedule,
    Fixed as Fixed,
    Quantile as Quantile,
    RoundDeadline as RoundDeadline,
    RoundTimes as RoundTimes,
)
from salf.flower.server.exchange import Exchange as Exchange
from salf.flower.server.federation_record import FederationRecord as FederationRecord
from salf.flower.server.strategy import SalfStrategy as SalfStrategy
