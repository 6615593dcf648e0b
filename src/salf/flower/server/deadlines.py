"""How long the next round lasts, given how the last ones went."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

from salf.errors import InvalidSetting

REMEMBERED_ROUNDS = 50
_MARGIN = 1.05  # what a quantile is lengthened by, as it is itself drawn from rounds that it has cut short
_GROWTH = 1.5  # by how much a deadline grows that too few clients have met to know the quantile


@dataclass(frozen=True)
class RoundTimes:
    """How one round went: its deadline in seconds, and how long the clients took.

    `whole` holds, for each client that finished all its work, the seconds from the making of its message to that of its
    reply; `unfinished` counts those asked that did not finish; `share` is the mean share of the layers that was
    conveyed, over all that were asked. `round` is the round's number, from 1.
    """

    deadline_seconds: float
    whole: tuple[float, ...]
    unfinished: int
    share: float
    round: int = 1


class RoundDeadline(ABC):
    """A way of choosing each round's deadline."""

    @abstractmethod
    def seconds(self, history: Sequence[RoundTimes]) -> float:
        """Return the next round's deadline, given the rounds so far (at least the last 50), oldest first."""


@dataclass(frozen=True)
class Fixed(RoundDeadline):
    """The same deadline in every round.

    >>> Fixed(20.0).seconds([])
    20.0
    """

    deadline_seconds: float

    def __post_init__(self) -> None:
        _check_seconds("deadline_seconds", self.deadline_seconds)

    def seconds(self, history: Sequence[RoundTimes]) -> float:
        """Return the deadline."""
        return float(self.deadline_seconds)


@dataclass(frozen=True, init=False)
class DeadlineSchedule(RoundDeadline):
    """A deadline for each round, chosen beforehand; the last one holds for all further rounds.

    So `salf.theory.adaptive_deadlines` (ADEL-FL, arXiv 2505.23973) or `salf plan` spend a budget of time where it
    lowers the convergence bound most.

    >>> DeadlineSchedule([8.0, 6.0]).seconds([]), DeadlineSchedule([8.0, 6.0]).seconds([RoundTimes(8.0, (), 3, 0.5, round=1)])
    (8.0, 6.0)
    """

    deadlines_seconds: tuple[float, ...]

    def __init__(self, deadlines_seconds: Iterable[float]) -> None:
        given = tuple(deadlines_seconds)
        if not given:
            raise InvalidSetting("deadlines_seconds is empty; give a deadline for each round")
        for place, seconds in enumerate(given):
            _check_seconds(f"deadlines_seconds[{place}]", seconds)
        object.__setattr__(self, "deadlines_seconds", tuple(float(seconds) for seconds in given))

    def seconds(self, history: Sequence[RoundTimes]) -> float:
        """Return the deadline of the round after the last one."""
        done = history[-1].round if history else 0
        return self.deadlines_seconds[min(done, len(self.deadlines_seconds) - 1)]


@dataclass(frozen=True, kw_only=True)
class Quantile(RoundDeadline):
    """The time by which a share `q` of the clients were observed to finish all their work, in the last `rounds` rounds.

    Clients that did not finish took longer than any that did. Where too few finished to know the quantile the deadline
    grows by a half. `first` is the first round's; it stays between `lowest` and `highest` seconds.

    >>> Quantile(q=0.5, first=10).seconds([RoundTimes(10.0, (2.0, 4.0, 6.0), unfinished=1, share=1.0)])
    4.2
    >>> Quantile(q=0.9, first=10).seconds([RoundTimes(10.0, (2.0, 4.0, 6.0), unfinished=1, share=1.0)])
    15.0
    """

    q: float
    first: float
    lowest: float = 0.1
    highest: float = 3600.0
    rounds: int = 5

    def __post_init__(self) -> None:
        _check_range(self.first, self.lowest, self.highest)
        if not 0 < self.q <= 1:
            raise InvalidSetting(f"q is {self.q!r}; give a share of the clients, above 0 and at most 1")
        if self.rounds < 1:
            raise InvalidSetting(f"rounds is {self.rounds!r}; give how many rounds to look back, at least 1")

    def seconds(self, history: Sequence[RoundTimes]) -> float:
        """Return the next round's deadline."""
        recent = [times for times in history[-self.rounds :] if times.whole or times.unfinished]
        if not recent:
            return float(self.first)
        whole = sorted(seconds for times in recent for seconds in times.whole)
        asked = len(whole) + sum(times.unfinished for times in recent)
        place = math.ceil(self.q * asked)
        wanted = whole[place - 1] * _MARGIN if place <= len(whole) else recent[-1].deadline_seconds * _GROWTH
        return min(max(wanted, self.lowest), self.highest)


@dataclass(frozen=True, kw_only=True)
class Adaptive(RoundDeadline):
    """The deadline at which clients convey a share `aim` of the layers on average, found by trying.

    After each round the logarithm of the deadline moves by `gain` times what the share conveyed fell short of `aim`
    (stochastic approximation; Robbins and Monro, 1951): it follows a federation whose devices change. `first` is the
    first round's; it stays between `lowest` and `highest` seconds.

    >>> Adaptive(aim=0.9, first=10, gain=1.0).seconds([RoundTimes(10.0, (), unfinished=4, share=0.9)])
    10.0
    """

    aim: float
    first: float
    gain: float = 0.5
    lowest: float = 0.1
    highest: float = 3600.0

    def __post_init__(self) -> None:
        _check_range(self.first, self.lowest, self.highest)
        if not 0 < self.aim < 1:
            raise InvalidSetting(f"aim is {self.aim!r}; give the mean share of layers to be conveyed, between 0 and 1")
        _check_seconds("gain", self.gain)

    def seconds(self, history: Sequence[RoundTimes]) -> float:
        """Return the next round's deadline."""
        known = [times for times in history if times.whole or times.unfinished]
        if not known:
            return float(self.first)
        wanted = known[-1].deadline_seconds * math.exp(self.gain * (self.aim - known[-1].share))
        return min(max(wanted, self.lowest), self.highest)


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise InvalidSetting(f"{name} is {value!r}; give a number above 0")


def _check_range(first: object, lowest: object, highest: object) -> None:
    for name, value in (("first", first), ("lowest", lowest), ("highest", highest)):
        _check_seconds(name, value)
    if not float(lowest) <= float(first) <= float(highest):  # type: ignore[arg-type] # were just checked
        raise InvalidSetting(f"first is {first!r}; give seconds between lowest = {lowest!r} and highest = {highest!r}")
