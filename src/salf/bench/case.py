"""What is measured, against which target, and how two ways of doing a thing are timed beside each other."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """One measured number; `details` says what it was made from, in seconds or bytes."""

    value: float
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """Something to measure: `measure` is given the seconds it may take, and the figure shall keep to the `target`.

    `bound` says whether the target is the most ("≤") or the least ("≥") that it may be; `unit` is "×" for a ratio, and
    "" for an exponent.
    """

    name: str
    what: str
    target: float
    bound: Literal["≤", "≥"]
    unit: Literal["×", "%", "MiB", ""]
    measure: Callable[[float], Figure]

    def is_met(self, value: float) -> bool:
        """Say whether a figure keeps to the target."""
        return value <= self.target if self.bound == "≤" else value >= self.target


def compare(one: Callable[[], object], other: Callable[[], object], seconds: float) -> Figure:
    """Time `one` and `other` in turn, for about so many seconds; the figure is the median of the pairs' ratios.

    Each is run twice before anything counts. What disturbs the machine for a while disturbs both of a pair.
    """
    for _ in range(2):
        one()
        other()
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < 5 or time.perf_counter() < end:
        pairs.append((timed(one), timed(other)))
    first, second = ([pair[place] for pair in pairs] for place in (0, 1))
    ratio = median(mine / theirs for mine, theirs in pairs)
    return Figure(ratio, {"seconds": median(first), "against_seconds": median(second), "pairs": len(pairs)})


def timed(act: Callable[[], object]) -> float:
    """Return how many seconds something takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start
