"""How often each client reached each layer, observed over the rounds of a run whose depth distribution nobody knows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from salf import theory
from salf.values import Ints

_PRIOR_ROUNDS = 2.0  # how many rounds of evidence the frequency over all clients counts for
_SURE_AFTER = 10  # rounds without a miss, of a client that was not asked in every round
_PAGE = 256


@dataclass(frozen=True)
class ObservedReach:
    """Counts of rounds asked and layers reached per client; a value: `observe` returns the next one.

    The probability that client u reaches layer l is estimated as its own frequency, smoothed towards that of all
    clients: π̂_{u,l} = (reached_{u,l} + 2 q̂_l) / (rounds_u + 2), q̂_l = (Σ reached_l + 1) / (Σ rounds + 1). Without
    evidence it is 1, so nothing is corrected before anyone was seen to miss a layer; and a client that never missed a
    layer, in all rounds so far or in ten at least, is taken to be certain of it, so that p_l is 0 as soon as there is
    one. Fewer rounds say little where clients are drawn from many: those who were lucky once would pass for certain.

    `pages` holds the counts of 256 clients each, the rounds in the first column and then the layers, and only of those
    of whom one was asked: a round copies the pages of its cohort, whatever the size of the population. `observations`
    counts the rounds in which anybody was asked.

    >>> seen = ObservedReach(num_layers=2).observe([3, 8], [[False, True], [True, True]])
    >>> seen.probability([3, 8, 5]).round(3)
    array([[0.444, 1.   ], [1.   , 1.   ], [0.667, 1.   ]])
    """

    num_layers: int
    pages: Mapping[int, Ints] = field(default_factory=dict)
    totals: Ints | None = None
    observations: int = 0

    def observe(self, clients: npt.ArrayLike, reached: npt.ArrayLike) -> "ObservedReach":
        """Count one round: `reached` has shape (clients, layers), true where a client reached a layer."""
        ids, hits = np.asarray(clients, dtype=np.int64), np.asarray(reached, dtype=np.int64)
        if hits.shape != (len(ids), self.num_layers) and (ids.size or hits.size):
            raise ValueError(f"reached has shape {hits.shape}, not ({len(ids)}, {self.num_layers}): clients, layers")
        counts = np.ones((len(ids), self.num_layers + 1), dtype=np.int64)
        counts[:, 1:] = hits.reshape(len(ids), self.num_layers)
        pages, places = dict(self.pages), ids % _PAGE
        distinct = bool((ids[1:] > ids[:-1]).all())  # as the clients of a round are
        for page, own in _by_page(ids):
            known = pages.get(page)
            pages[page] = self._nothing(_PAGE) if known is None else known.copy()
            if distinct:
                pages[page][places[own]] += counts[own]
            else:
                np.add.at(pages[page], places[own], counts[own])
        seen = self.observations + bool(len(ids))
        return ObservedReach(self.num_layers, pages, self._totals() + counts.sum(axis=0), seen)

    def probability(self, clients: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Estimate π_{u,l} for the given clients, shape (clients, layers)."""
        counts = self._counts(np.asarray(clients, dtype=np.int64))
        rounds, reached = counts[:, :1], counts[:, 1:]
        totals = self._totals()
        overall = (totals[1:] + 1) / (totals[0] + 1)
        smoothed = (reached + _PRIOR_ROUNDS * overall) / (rounds + _PRIOR_ROUNDS)
        enough = (rounds > 0) & (rounds >= min(self.observations, _SURE_AFTER))
        return np.where(enough & (reached == rounds), 1.0, smoothed)

    def to_arrays(self) -> dict[str, Ints]:
        """Return the counts as arrays: `clients` and `rounds` of shape (clients,), `reached` of (clients, layers).

        `observations` has shape (1,).
        """
        pages = sorted(self.pages)
        counts = np.concatenate([self._nothing(0), *(self.pages[page] for page in pages)])
        clients = (np.array(pages, dtype=np.int64)[:, None] * _PAGE + np.arange(_PAGE)).ravel()
        asked = counts[:, 0] > 0
        return {
            "clients": clients[asked],
            "rounds": counts[asked, 0],
            "reached": counts[asked, 1:],
            "observations": np.array([self.observations]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Ints]) -> "ObservedReach":
        """Read what `to_arrays` returned."""
        counts = np.concatenate([arrays["rounds"][:, None], arrays["reached"]], axis=1)
        empty = cls(arrays["reached"].shape[1])
        pages = {}
        for page, own in _by_page(arrays["clients"]):
            pages[page] = empty._nothing(_PAGE)
            pages[page][arrays["clients"][own] % _PAGE] = counts[own]
        return cls(empty.num_layers, pages, counts.sum(axis=0), int(arrays["observations"][0]))

    def _counts(self, ids: Ints) -> Ints:
        counts, places = self._nothing(len(ids)), ids % _PAGE
        for page, own in _by_page(ids):
            if page in self.pages:
                counts[own] = self.pages[page][places[own]]
        return counts

    def _totals(self) -> Ints:
        return self._nothing(1)[0] if self.totals is None else self.totals

    def _nothing(self, clients: int) -> Ints:
        return np.zeros((clients, self.num_layers + 1), dtype=np.int64)


@dataclass(frozen=True)
class Chances:
    """What a round's record tells of the chances π_{u,l} of those asked, a number per layer, to six decimals.

    `empty` is p_l, the chance that nobody conveys the layer, `mean` and `least` are over clients; all are empty where
    nobody was asked.
    """

    empty: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    least: tuple[float, ...] = ()

    @classmethod
    def of(cls, reach: npt.NDArray[np.float64], min_contributors: int = 1, empty: Sequence[float] = ()) -> "Chances":
        """Sum up π_{u,l}, of shape (clients, layers); a layer with fewer than `min_contributors` counts as empty.

        `empty` is p_l of these clients where it is known already.

        >>> Chances.of(np.array([[0.25, 1.0], [0.5, 1.0]]))
        Chances(empty=(0.375, 0.0), mean=(0.375, 1.0), least=(0.25, 1.0))
        """
        if not len(reach):
            return cls()
        if not empty:
            empty = theory.empty_probability(reach=reach, min_contributors=min_contributors).tolist()
        rows = np.round([empty, reach.mean(axis=0), reach.min(axis=0)], 6).tolist()
        return cls(*(tuple(row) for row in rows))


def _by_page(ids: Ints) -> Iterator[tuple[int, npt.NDArray[np.bool_] | slice]]:
    """Yield each page that holds some of the clients, and which of them."""
    if not len(ids):
        return
    pages = ids // _PAGE
    first, last = int(pages.min()), int(pages.max())
    if first == last:  # looking for different ones takes longer than all else
        yield first, slice(None)
        return
    if (pages[1:] >= pages[:-1]).all():  # those of a page stand beside each other
        starts = [0, *(np.flatnonzero(pages[1:] > pages[:-1]) + 1).tolist(), len(pages)]
        yield from zip(pages[starts[:-1]].tolist(), map(slice, starts, starts[1:]), strict=False)
        return
    for page in np.unique(pages).tolist():
        yield page, pages == page
