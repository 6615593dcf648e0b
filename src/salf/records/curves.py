"""What several runs of one method come to, test by test: the mean, and a band from worst to best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from salf.records.rounds import RoundRecord
from salf.values import Floats


@dataclass(frozen=True)
class Curve:
    """A figure at each round that was tested, all of shape (points,): `seconds` of virtual time, `mean`, `low`, `high`.

    `seconds` is the mean over runs, in which the same round ends at different times.
    """

    rounds: npt.NDArray[np.int64]
    seconds: Floats
    mean: Floats
    low: Floats
    high: Floats

    def thinned(self, points: int) -> "Curve":
        """Return at most so many points, two or more, evenly spaced, the first and the last among them."""
        if len(self.rounds) <= points:
            return self
        kept = np.linspace(0, len(self.rounds) - 1, points).round().astype(np.int64)
        return Curve(self.rounds[kept], self.seconds[kept], self.mean[kept], self.low[kept], self.high[kept])


def curve_of(runs: Sequence[Sequence[RoundRecord]], figure: Literal["accuracy", "loss"]) -> Curve:
    """Return the curve of a figure over the rounds for which all of the runs have it.

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
    points = points.reshape(len(rounds), len(runs), 2)
    values = points[:, :, 1]
    if not rounds:
        empty = np.empty(0)
        return Curve(np.empty(0, dtype=np.int64), empty, empty, empty, empty)
    return Curve(
        np.array(rounds), points[:, :, 0].mean(axis=1), values.mean(axis=1), values.min(axis=1), values.max(axis=1)
    )


def deviation_of(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; NaN for less than two values, or where one is NaN.

    >>> deviation_of([1.0, 3.0]), deviation_of([1.0]), deviation_of([1.0, math.nan])
    (1.4142135623730951, nan, nan)
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
