"""Layers that starve: conveyed by hardly anybody, or by the same clients for ever, so that nobody else's data count."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr

from salf.participation.reach import ObservedReach
from salf.values import Floats

Bools = npt.NDArray[np.bool_]
FIRST_LOOK = 60  # rounds; then after twice, four times, … as many
_HARDLY_EVER, _SURE = 0.05, 0.05
_IMPLAUSIBLE = 0.001
_TOO_MANY = 0.1  # of the clients may be too slow without a word
_MOST_EMPTY = 0.5  # above which the rule `Corrected` no longer corrects in full
_MOST_NAMED = 6
REMEDY = (
    "let slow clients compute on smaller batches (method.name = 'salfplus' or 'adel'), remember what they conveyed "
    "('memory'), or raise method.deadline"
)


class StarvationWarning(UserWarning):
    """Layers of the model starve."""


@dataclass(frozen=True)
class Starving:
    """A layer that starves.

    `absent` are the clients that hardly ever convey it, of `known` ones that were asked often enough to tell. `nobody`
    says that in most rounds nobody conveys it at all.
    """

    layer: str
    absent: tuple[int, ...]
    known: int
    nobody: bool

    def __str__(self) -> str:
        """Name the layer and the clients.

        >>> print(Starving("conv1", (0, 1, 2, 7), 30, nobody=False))
        conv1 (never or hardly ever conveyed by 4 of 30 clients: 0–2, 7)
        >>> print(Starving("conv1", (), 0, nobody=True))
        conv1 (in most rounds conveyed by nobody)
        """
        if self.nobody:
            return f"{self.layer} (in most rounds conveyed by nobody)"
        few = f"{len(self.absent)} of {self.known} clients"
        return f"{self.layer} (never or hardly ever conveyed by {few}: {_listed(self.absent)})"


def starving(observed: ObservedReach, layers: Sequence[str], asked: int) -> tuple[Starving, ...]:
    """Return the layers that starve in a run of which `observed` is known, input to output; `asked` clients a round.

    A layer does if by its overall frequency q it is conveyed by nobody in more than half of the rounds, (1 − q)^asked,
    or if a tenth of the clients hardly ever convey it: in so few of their rounds that a chance of 5 % would be
    implausible (binomial test at 5 %). That takes 59 rounds at least, and those asked less often do not count.

    >>> seen = ObservedReach(num_layers=2)
    >>> for _ in range(60):
    ...     seen = seen.observe([0, 1, 2], [[False, True], [False, True], [True, True]])
    >>> starving(seen, ["conv1", "fc1"], asked=3)
    (Starving(layer='conv1', absent=(0, 1), known=3, nobody=False),)
    """
    counts = observed.to_arrays()
    rounds, reached = counts["rounds"], counts["reached"]
    if not len(rounds) or rounds.sum() < FIRST_LOOK * asked:
        return ()
    nobody = _nobody(reached.sum(axis=0) / rounds.sum(), asked)
    known = (1 - _HARDLY_EVER) ** rounds < _SURE
    clients = counts["clients"][known]
    absent = np.asarray(bdtr(reached[known], rounds[known, None], _HARDLY_EVER)) < _SURE
    return tuple(
        Starving(layer, tuple(clients[own].tolist()), len(clients), bool(empty))
        for layer, own, empty in zip(layers, absent.T, nobody.tolist(), strict=True)
        if empty or own.sum() > _TOO_MANY * len(clients)
    )


def left_behind(observed: ObservedReach) -> bool:
    """Say whether it shows that some client reaches some layer much more seldom than the others do, or hardly ever.

    It has reached it in so few of the rounds in which it was asked that even half of the frequency over all clients, or
    5 % where that is more, would be implausible (binomial test at 0.1 %). Or in most rounds nobody at all reaches the
    layer. The fewer others reach it, the longer it takes to show: 10 rounds if all others always do, 135 if hardly
    anybody does; and of who was asked less often than that nothing is known. It looks at everyone ever asked.

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
    if (_nobody(usual, rounds.sum() / observed.observations)).any():
        return True
    return bool((bdtr(reached, rounds[:, None], np.maximum(usual / 2, _HARDLY_EVER)) < _IMPLAUSIBLE).any())


def _nobody(usual: Floats, asked: float) -> Bools:
    """Say of each layer, reached with a `usual` frequency, whether in most rounds none of those asked reaches it."""
    return np.asarray((1 - usual) ** asked > _MOST_EMPTY)


def describe(found: Sequence[Starving], remedy: str = REMEDY) -> str:
    """Say which layers starve, for want of which clients, and what helps; `remedy` is for slow clients.

    >>> describe([Starving("conv1", (), 0, nobody=True)])
    'layer conv1 (in most rounds conveyed by nobody) starves; raise the deadline, or ask more clients in each round'
    """
    one = len(found) == 1
    what = f"{'layer' if one else 'layers'} {', '.join(map(str, found))} {'starves' if one else 'starve'}"
    if all(each.nobody for each in found):
        return f"{what}; raise the deadline, or ask more clients in each round"
    return f"{what}: what these clients know does not enter; {remedy}"


class StarvationMonitor:
    """Looks for layers that starve now and then in a run, and tells of each once."""

    def __init__(self, layers: Sequence[str]) -> None:
        self._layers = layers
        self._told: set[str] = set()

    def look(self, round: int, observed: ObservedReach, asked: int) -> tuple[Starving, ...]:
        """Return the layers that were found to starve for the first time after a round; after most nobody looks."""
        found = starving(observed, self._layers, asked) if _is_due(round) else ()
        new = tuple(one for one in found if one.layer not in self._told)
        self._told |= {one.layer for one in new}
        return new

    def warn(self, round: int, observed: ObservedReach, asked: int) -> None:
        """Warn with a `StarvationWarning` of layers that were found to starve for the first time."""
        found = self.look(round, observed, asked)
        if found:
            warnings.warn(describe(found), StarvationWarning, stacklevel=4)


def _is_due(round: int) -> bool:
    """Say whether to look after a round: the 60th, 120th, 240th and so on."""
    times, rest = divmod(round, FIRST_LOOK)
    return not rest and times.bit_count() == 1


def _listed(clients: Iterable[int]) -> str:
    """Write increasing numbers, neighbours together, and not too many.

    >>> _listed([0, 1, 2, 7, 9, 10]), _listed(range(0, 40, 2))
    ('0–2, 7, 9–10', '0, 2, 4, 6, 8, 10 and 14 more')
    """
    runs = [*_runs(clients)]
    text = ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs[:_MOST_NAMED])
    more = sum(last - first + 1 for first, last in runs[_MOST_NAMED:])
    return f"{text} and {more} more" if more else text


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each run of neighbours among increasing numbers."""
    places = enumerate(numbers)
    for _, run in groupby(places, key=lambda entry: entry[1] - entry[0]):
        own = [number for _, number in run]
        yield own[0], own[-1]
