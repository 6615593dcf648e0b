"""How long the next round lasts, chosen from how the last rounds went."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from salf.errors import InvalidSetting, check_positive, shown

REMEMBERED_ROUNDS = 50
_MARGIN = 1.05  # lengthens a quantile, because it is drawn from rounds that it has cut short itself
_GROWTH = 1.5  # lengthens a deadline that too few clients met to know the quantile


@dataclass(frozen=True)
class RoundTimes:
    """How long one round took.

    Attributes:
        deadline_seconds: The deadline of the round.
        whole: For each client that finished all layers, the seconds from the server's message to the reply.
        unfinished: The number of sampled clients that did not finish.
        share: The share of the layers that was sent, from 0 to 1, averaged over all sampled clients.
        round: The round's number, from 1.
    """

    deadline_seconds: float
    whole: tuple[float, ...]
    unfinished: int
    share: float
    round: int = 1

    @property
    def num_clients(self) -> int:
        """The number of sampled clients."""
        return len(self.whole) + self.unfinished


class RoundDeadline(ABC):
    """A way to choose the deadline of each round. Subclass it to define another.

    >>> class Doubling(RoundDeadline):
    ...     def seconds(self, history):
    ...         return 2 * history[-1].deadline_seconds if history else 1.0
    >>> Doubling().seconds([RoundTimes(8.0, (), unfinished=3, share=0.5)])
    16.0
    """

    @abstractmethod
    def seconds(self, history: Sequence[RoundTimes]) -> float:
        """Return the deadline of the next round in seconds.

        Args:
            history: The rounds so far, oldest first; of a long run at least the last 50.
        """


@dataclass(frozen=True)
class Fixed(RoundDeadline):
    """The same deadline in every round.

    Args:
        deadline_seconds: The deadline, greater than 0.

    Raises:
        InvalidSetting: The deadline is not a finite number greater than 0.

    >>> Fixed(20.0).seconds([])
    20.0
    """

    deadline_seconds: float

    def __post_init__(self) -> None:
        check_positive("deadline_seconds", self.deadline_seconds)

    def seconds(self, history: Sequence[RoundTimes]) -> float:
        """Return the deadline in seconds."""
        return float(self.deadline_seconds)


@dataclass(frozen=True, init=False)
class DeadlineSchedule(RoundDeadline):
    """A deadline for each round, chosen before the run; the last one holds for all further rounds.

    `salf.theory.adaptive_deadlines` (ADEL-FL, arXiv 2505.23973) and `salf plan` compute such a schedule.

    Args:
        deadlines_seconds: The deadlines from round 1 on, each greater than 0.

    Raises:
        InvalidSetting: There is no deadline, or one is not a finite number greater than 0.

    >>> schedule = DeadlineSchedule([8.0, 6.0])
    >>> schedule.seconds([]), schedule.seconds([RoundTimes(8.0, (), unfinished=3, share=0.5, round=1)])
    (8.0, 6.0)
    """

    deadlines_seconds: tuple[float, ...]

    def __init__(self, deadlines_seconds: Iterable[float]) -> None:
        given = tuple(deadlines_seconds)
        if not given:
            raise InvalidSetting("deadlines_seconds is empty; pass a deadline for each round")
        for index, seconds in enumerate(given):
            check_positive(f"deadlines_seconds[{index}]", seconds)
        object.__setattr__(self, "deadlines_seconds", tuple(float(seconds) for seconds in given))

    def seconds(self, history: Sequence[RoundTimes]) -> float:
        """Return the deadline of the round after the last one, in seconds."""
        done = history[-1].round if history else 0
        return self.deadlines_seconds[min(done, len(self.deadlines_seconds) - 1)]


@dataclass(frozen=True, kw_only=True)
class _BoundedDeadline(RoundDeadline):
    """A deadline that follows the observed rounds, between two bounds."""

    first: float
    lowest: float = 0.1
    highest: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("first", "lowest", "highest"):
            check_positive(name, getattr(self, name))
        if not self.lowest <= self.first <= self.highest:
            bounds = f"lowest = {self.lowest!r} and highest = {self.highest!r}"
            raise InvalidSetting(f"first is {self.first!r}; choose seconds between {bounds}")

    def _bounded(self, seconds: float) -> float:
        return min(max(seconds, self.lowest), self.highest)


@dataclass(frozen=True, kw_only=True)
class Quantile(_BoundedDeadline):
    """The time in which a share of the clients finished all layers in the last rounds.

    A client that did not finish counts as slower than any that did. If too few clients finished to know the quantile,
    the deadline grows by a half.

    Args:
        q: The share of the clients, greater than 0 and at most 1.
        first: The deadline of the first round in seconds.
        lowest: The shortest deadline in seconds.
        highest: The longest deadline in seconds.
        rounds: The number of rounds to look back, at least 1.

    Raises:
        InvalidSetting: An argument is outside its range, or `first` is not between `lowest` and `highest`.

    >>> Quantile(q=0.5, first=10).seconds([RoundTimes(10.0, (2.0, 4.0, 6.0), unfinished=1, share=1.0)])
    4.2
    >>> Quantile(q=0.9, first=10).seconds([RoundTimes(10.0, (2.0, 4.0, 6.0), unfinished=1, share=1.0)])
    15.0
    """

    q: float
    rounds: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.q <= 1:
            raise InvalidSetting(f"q is {shown(self.q)}; choose a share of the clients, above 0 and at most 1")
        if self.rounds < 1:
            raise InvalidSetting(f"rounds is {shown(self.rounds)}; choose a number of rounds, at least 1")

    def seconds(self, history: Sequence[RoundTimes]) -> float:
        """Return the deadline of the next round in seconds."""
        recent = [times for times in history[-self.rounds :] if times.num_clients]
        if not recent:
            return float(self.first)
        whole = sorted(seconds for times in recent for seconds in times.whole)
        rank = math.ceil(self.q * sum(times.num_clients for times in recent))
        wanted = whole[rank - 1] * _MARGIN if rank <= len(whole) else recent[-1].deadline_seconds * _GROWTH
        return self._bounded(wanted)


@dataclass(frozen=True, kw_only=True)
class Adaptive(_BoundedDeadline):
    """The deadline at which clients finish a given share of the layers on average, found by stochastic approximation.

    After each round the logarithm of the deadline moves by `gain` times the difference between `aim` and the share that
    was sent (Robbins and Monro, 1951). The deadline therefore follows devices that change.

    Args:
        aim: The mean share of the layers to be sent, between 0 and 1.
        first: The deadline of the first round in seconds.
        gain: The step size, greater than 0.
        lowest: The shortest deadline in seconds.
        highest: The longest deadline in seconds.

    Raises:
        InvalidSetting: An argument is outside its range, or `first` is not between `lowest` and `highest`.

    >>> Adaptive(aim=0.9, first=10, gain=1.0).seconds([RoundTimes(10.0, (), unfinished=4, share=0.9)])
    10.0
    """

    aim: float
    gain: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.aim < 1:
            raise InvalidSetting(f"aim is {shown(self.aim)}; choose the mean share of layers to send, between 0 and 1")
        check_positive("gain", self.gain)

    def seconds(self, history: Sequence[RoundTimes]) -> float:
        """Return the deadline of the next round in seconds."""
        known = [times for times in history if times.num_clients]
        if not known:
            return float(self.first)
        wanted = known[-1].deadline_seconds * math.exp(self.gain * (self.aim - known[-1].share))
        return self._bounded(wanted)
