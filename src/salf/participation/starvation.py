"""Layers that starve: almost no client reaches them, or always the same ones do.

The data of all other clients does not enter these layers.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import scipy

from salf.participation.observed import ObservedReach
from salf.values import Floats

FIRST_LOOK = 60  # rounds; then after twice, four times, … as many
_HARDLY_EVER, _SURE = 0.05, 0.05
_IMPLAUSIBLE = 0.001
_TOO_MANY = 0.1  # a smaller share of slow clients gives no warning
_MOST_EMPTY = 0.5  # above it the rule `Corrected` no longer corrects in full
_MOST_NAMED = 6
REMEDY = (
    "let slow clients compute on smaller batches (method.name = 'salfplus' or 'adel'), keep their last updates "
    "('memory'), or raise method.deadline"
)


class StarvationWarning(UserWarning):
    """Layers of the model starve."""


@dataclass(frozen=True)
class Starving:
    """A layer that starves.

    Attributes:
        layer: Its name.
        absent: The clients that almost never reach it.
        known: How many clients took part often enough to tell.
        unreached: Whether no client reaches it in most rounds.
    """

    layer: str
    absent: tuple[int, ...]
    known: int
    unreached: bool

    def __str__(self) -> str:
        """Name the layer and the clients.

        >>> print(Starving("conv1", (0, 1, 2, 7), 30, unreached=False))
        conv1 (almost never reached by 4 of 30 clients: 0–2, 7)
        >>> print(Starving("conv1", (), 0, unreached=True))
        conv1 (reached by no client in most rounds)
        """
        if self.unreached:
            return f"{self.layer} (reached by no client in most rounds)"
        few = f"{len(self.absent)} of {self.known} clients"
        return f"{self.layer} (almost never reached by {few}: {_listed(self.absent)})"


def starving(observed: ObservedReach, layers: Sequence[str], asked: int) -> tuple[Starving, ...]:
    """Return the layers that starve, input to output.

    A layer starves if its overall frequency q leaves it without a contributor in more than half of the rounds,
    (1 − q)^asked > ½. It also starves if more than a tenth of the clients almost never reach it: so rarely that a
    probability of 5 % is implausible (binomial test at 5 %). That takes at least 59 rounds of a client; clients with
    fewer do not count.

    Args:
        observed: What the run has shown so far.
        layers: The names of its layers, input to output.
        asked: Clients per round.

    >>> seen = ObservedReach(num_layers=2)
    >>> for _ in range(60):
    ...     seen = seen.observe([0, 1, 2], [[False, True], [False, True], [True, True]])
    >>> starving(seen, ["conv1", "fc1"], asked=3)
    (Starving(layer='conv1', absent=(0, 1), known=3, unreached=False),)
    """
    counts = observed.to_arrays()
    rounds, reached = counts["rounds"], counts["reached"]
    if not len(rounds) or rounds.sum() < FIRST_LOOK * asked:
        return ()
    unreached = _mostly_empty(reached.sum(axis=0) / rounds.sum(), asked)
    known = (1 - _HARDLY_EVER) ** rounds < _SURE
    clients = counts["clients"][known]
    absent = np.asarray(scipy.special.bdtr(reached[known], rounds[known, None], _HARDLY_EVER)) < _SURE
    return tuple(
        Starving(layer, tuple(clients[own].tolist()), len(clients), bool(empty))
        for layer, own, empty in zip(layers, absent.T, unreached.tolist(), strict=True)
        if empty or own.sum() > _TOO_MANY * len(clients)
    )


def left_behind(observed: ObservedReach) -> bool:
    """Return whether some client reaches some layer far less often than the others.

    The client reached it in so few of its rounds that even half of the frequency over all clients, or 5 % if that is
    more, is implausible (binomial test at 0.1 %). It takes 10 rounds to show if all other clients always reach the
    layer, and 135 if almost no client does. The answer is also True if no client reaches some layer in most rounds. All
    clients observed so far count.

    >>> seen = ObservedReach(num_layers=1)
    >>> for _ in range(20):
    ...     seen = seen.observe([0, 1, 2], [[False], [True], [True]])
    >>> left_behind(seen), left_behind(seen.observe([0], [[True]]))
    (True, False)
    """
    counts = observed.to_arrays()
    rounds, reached = counts["rounds"], counts["reached"]
    if not len(rounds):
        return False
    usual = reached.sum(axis=0) / rounds.sum()
    if _mostly_empty(usual, rounds.sum() / observed.observations).any():
        return True
    least = np.maximum(usual / 2, _HARDLY_EVER)
    return bool((scipy.special.bdtr(reached, rounds[:, None], least) < _IMPLAUSIBLE).any())


def _mostly_empty(usual: Floats, asked: float) -> npt.NDArray[np.bool_]:
    """Return whether each layer, of a `usual` frequency, is empty in most rounds."""
    return np.asarray((1 - usual) ** asked > _MOST_EMPTY)


def describe_starvation(found: Sequence[Starving], remedy: str = REMEDY) -> str:
    """Return the message for layers that starve; `remedy` is for slow clients.

    >>> describe_starvation([Starving("conv1", (), 0, unreached=True)])
    'layer conv1 (reached by no client in most rounds) starves; raise the deadline or the number of clients per round'
    """
    one = len(found) == 1
    what = f"{'layer' if one else 'layers'} {', '.join(map(str, found))} {'starves' if one else 'starve'}"
    if all(each.unreached for each in found):
        return f"{what}; raise the deadline or the number of clients per round"
    return f"{what}: the data of these clients does not enter; {remedy}"


class StarvationMonitor:
    """Checks a run for layers that starve, after 60, 120, 240, … rounds.

    It reports each layer once.

    >>> monitor = StarvationMonitor(["conv1", "fc1"])
    >>> monitor.newly_starving(60, ObservedReach(num_layers=2), asked=3)
    ()
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self._layers = layers
        self._reported: set[str] = set()

    def newly_starving(self, round: int, observed: ObservedReach, asked: int) -> tuple[Starving, ...]:
        """Return the layers that starve and were not reported before.

        Args:
            round: The round that has ended, from 1; in most rounds nothing is checked.
            observed: What the run has shown so far.
            asked: Clients per round.
        """
        found = starving(observed, self._layers, asked) if _is_due(round) else ()
        new = tuple(one for one in found if one.layer not in self._reported)
        self._reported |= {one.layer for one in new}
        return new

    def warn(self, round: int, observed: ObservedReach, asked: int) -> None:
        """Issue a `StarvationWarning` for layers that `newly_starving` returns."""
        found = self.newly_starving(round, observed, asked)
        if found:
            warnings.warn(describe_starvation(found), StarvationWarning, stacklevel=4)


def _is_due(round: int) -> bool:
    """Return whether a round is the 60th, 120th, 240th and so on."""
    times, rest = divmod(round, FIRST_LOOK)
    return not rest and times.bit_count() == 1


def _listed(clients: Iterable[int]) -> str:
    """Write increasing numbers as ranges, at most six of them.

    >>> _listed([0, 1, 2, 7, 9, 10]), _listed(range(0, 40, 2))
    ('0–2, 7, 9–10', '0, 2, 4, 6, 8, 10 and 14 more')
    """
    runs = [*_runs(clients)]
    text = ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs[:_MOST_NAMED])
    more = sum(last - first + 1 for first, last in runs[_MOST_NAMED:])
    return f"{text} and {more} more" if more else text


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last number of each run of consecutive numbers."""
    places = enumerate(numbers)
    for _, run in groupby(places, key=lambda entry: entry[1] - entry[0]):
        own = [number for _, number in run]
        yield own[0], own[-1]
