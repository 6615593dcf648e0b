"""Curves over several runs of one method: the mean, and a band from the worst run to the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from salf.records.rounds import RoundRecord
from salf.values import Floats, Ints


@dataclass(frozen=True)
class Curve:
    """Accuracy or loss at each round that was evaluated in every run; all arrays have the shape (points,).

    Attributes:
        rounds: The numbers of the rounds.
        seconds: The virtual time at the end of the round, the mean over runs.
        mean: The mean over runs.
        low: The smallest value of any run.
        high: The largest value of any run.
    """

    rounds: Ints
    seconds: Floats
    mean: Floats
    low: Floats
    high: Floats

    def scaled(self, factor: float) -> "Curve":
        """Return the curve in another unit, `factor` times as small."""
        return Curve(self.rounds, self.seconds, factor * self.mean, factor * self.low, factor * self.high)

    def thinned(self, points: int) -> "Curve":
        """Return at most `points` (2 or more) evenly spaced points, including the first and the last."""
        if len(self.rounds) <= points:
            return self
        kept = np.linspace(0, len(self.rounds) - 1, points).round().astype(np.int64)
        return Curve(self.rounds[kept], self.seconds[kept], self.mean[kept], self.low[kept], self.high[kept])


def curve_of(runs: Sequence[Sequence[RoundRecord]], figure: Literal["accuracy", "loss"]) -> Curve:
    """Return the curve over the rounds that were evaluated in every run.

    Args:
        runs: The records of each run.
        figure: The quantity: accuracy (0 to 1) or loss.

    >>> runs = [[RoundRecord(1, time, None, 1, (1,), 1.0, accuracy=time / 10)] for time in (1.0, 3.0)]
    >>> curve = curve_of(runs, "accuracy")
    >>> curve.seconds.tolist(), curve.mean.tolist(), curve.low.tolist(), curve.high.tolist()
    ([2.0], [0.2], [0.1], [0.3])
    """
    tested = [
        {record.round: (record.time_s, value) for record in run if (value := getattr(record, figure)) is not None}
        for run in runs
    ]
    rounds = [number for number in tested[0] if all(number in run for run in tested)] if tested else []
    points = np.array([[run[number] for run in tested] for number in rounds], dtype=np.float64)
    points = points.reshape(len(rounds), max(1, len(runs)), 2)
    times, values = points[:, :, 0].mean(axis=1), points[:, :, 1]
    return Curve(np.array(rounds, np.int64), times, values.mean(axis=1), values.min(axis=1), values.max(axis=1))


def deviation_of(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; NaN for fewer than two values, or if one is NaN.

    >>> deviation_of([1.0, 3.0]), deviation_of([1.0]), deviation_of([1.0, math.nan])
    (1.4142135623730951, nan, nan)
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
