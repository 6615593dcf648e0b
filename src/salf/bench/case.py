"""What is measured, against which target, and how two ways of doing a thing are timed beside each other."""

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
    """One measured number; `details` says what it was made from, in seconds, bytes or counts, or as other ratios."""

    value: float
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """Something to measure: `measure` is given the seconds it may take, and the figure shall keep to the `target`.

    `bound` says whether the target is the most ("≤") or the least ("≥") that it may be; `unit` is "×" for a ratio, and
    "" for an exponent. What is about the memory of processes is measured for the CPU only (`cpu_only`).
    """

    name: str
    what: str
    target: float
    bound: Literal["≤", "≥"]
    unit: Literal["×", "%", "MiB", ""]
    measure: Callable[[float], Figure]
    cpu_only: bool = False

    def is_met(self, value: float) -> bool:
        """Say whether a figure keeps to the target."""
        return value <= self.target if self.bound == "≤" else value >= self.target


def compare(
    one: Callable[[], object], other: Callable[[], object], seconds: float, device: torch.device = CPU
) -> Figure:
    """Time `one` and `other` in turn, for about so many seconds; the figure is the median of the pairs' ratios.

    Each is run twice before anything counts. What disturbs the machine for a while disturbs both of a pair. What is
    short is done again and again in its turn, as rounds follow rounds: neither has to begin with what the other has
    left in the processor's caches.
    """
    one()
    other()
    often, oftener = (max(1, math.ceil(_TURN_SECONDS / timed(act, device=device))) for act in (one, other))
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < 5 or time.perf_counter() < end:
        pairs.append((timed(one, often, device), timed(other, oftener, device)))
    first, second = ([pair[place] for pair in pairs] for place in (0, 1))
    ratio = median(mine / theirs for mine, theirs in pairs)
    details = {"seconds": median(first), "against_seconds": median(second), "pairs": len(pairs)}
    return Figure(ratio, {**details, "times": often, "against_times": oftener})


def timed(act: Callable[[], object], times: int = 1, device: torch.device = CPU) -> float:
    """Return how many seconds something takes, on average over so many times, one after the other.

    The clock is read when the `device` has done what it was given.
    """
    wait_for(device)
    start = time.perf_counter()
    for _ in range(times):
        act()
    wait_for(device)
    return (time.perf_counter() - start) / times
