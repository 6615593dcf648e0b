"""A case to measure, its target, and how two ways of doing the same work are timed in turn."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import torch

from salf.engines import CPU, wait_for

_TURN_SECONDS = 0.03


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        value: The number, in the unit of its case.
        details: What it was computed from: seconds, bytes, counts, or other ratios.
    """

    value: float
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """Something to measure, and its target.

    Attributes:
        name: Its kind and subject, such as `fused/mlp-30`.
        what: What is measured, in words.
        target: The number that the figure should keep to.
        bound: Whether the target is the most ("≤") or the least ("≥") that the figure may be.
        unit: "×" for a ratio, "%", "MiB", "s" for seconds, "" for an exponent.
        measure: Measures the figure, for about so many seconds.
        cpu_only: Whether it is about processes on the CPU, and not measured for other devices.

    >>> Case("round/mlp-30", "a whole round", 1.5, "≤", "×", lambda seconds: Figure(1.2)).is_met(1.2)
    True
    """

    name: str
    what: str
    target: float
    bound: Literal["≤", "≥"]
    unit: Literal["×", "%", "MiB", "s", ""]
    measure: Callable[[float], Figure]
    cpu_only: bool = False

    def is_met(self, value: float) -> bool:
        """Return whether a figure keeps to the target."""
        return value <= self.target if self.bound == "≤" else value >= self.target


def time_in_turn(
    one: Callable[[], object], other: Callable[[], object], seconds: float, device: torch.device = CPU
) -> Figure:
    """Time two functions in turn; the figure is the median of the ratios `one` / `other`.

    What disturbs the machine for a while disturbs both of a pair. A short function is repeated in its turn, as rounds
    follow rounds: it does not start with the processor's caches as the other left them.

    Args:
        one: The first function; both run twice before anything counts.
        other: The second function.
        seconds: About how long to measure; five pairs at least.
        device: Where both compute; its queue is empty when a clock is read.
    """
    one()
    other()
    repeats, other_repeats = (max(1, math.ceil(_TURN_SECONDS / timed(act, device=device))) for act in (one, other))
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < 5 or time.perf_counter() < end:
        pairs.append((timed(one, repeats, device), timed(other, other_repeats, device)))
    first, second = ([pair[place] for pair in pairs] for place in (0, 1))
    ratio = median(mine / theirs for mine, theirs in pairs)
    details = {"seconds": median(first), "against_seconds": median(second), "pairs": len(pairs)}
    return Figure(ratio, {**details, "times": repeats, "against_times": other_repeats})


def timed(act: Callable[[], object], times: int = 1, device: torch.device = CPU) -> float:
    """Return the seconds that a function takes, the mean over `times` calls.

    The clock is read when the queue of the `device` is empty.

    >>> timed(lambda: None, times=10) < 1
    True
    """
    wait_for(device)
    start = time.perf_counter()
    for _ in range(times):
        act()
    wait_for(device)
    return (time.perf_counter() - start) / times
