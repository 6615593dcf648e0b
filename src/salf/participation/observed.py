"""What the rounds of a run have shown of each client: the layers that it reached, and its speed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from salf import theory
from salf.errors import InvalidSetting
from salf.values import Floats, Ints

_PRIOR_ROUNDS = 2.0  # the weight of the frequency over all clients, in rounds
_SURE_AFTER = 10  # rounds without a miss, of a client that does not take part in every round
_PAGE = 256
_FORGETTING = 0.1  # the weight of the latest round in a speed, from the tenth on


@dataclass(frozen=True)
class ObservedReach:
    """Counts of rounds and reached layers per client; `observe` gives the next value.

    The probability that client u reaches layer l is its own frequency, smoothed towards that of all clients:
    π̂_{u,l} = (reached_{u,l} + 2 q̂_l) / (rounds_u + 2) with q̂_l = (Σ reached_l + 1) / (Σ rounds + 1). Without
    observations it is 1, so no rule corrects before a client has missed a layer. It is also 1 for a client that never
    missed the layer, in all rounds so far or in at least ten; one such client makes p_l zero. Fewer rounds prove little
    if cohorts are drawn from a large population: clients that were lucky once would count as certain.

    Attributes:
        num_layers: L.
        pages: Counts of 256 clients each, shape (256, 1 + layers): rounds, then layers reached. Only pages of clients
            that took part exist, and a round copies the pages of its cohort, whatever the size of the population.
        totals: Their sum over clients, shape (1 + layers,).
        observations: Number of rounds with at least one client.

    >>> seen = ObservedReach(num_layers=2).observe([3, 8], [[False, True], [True, True]])
    >>> seen.probability([3, 8, 5]).round(3)
    array([[0.444, 1.   ], [1.   , 1.   ], [0.667, 1.   ]])
    """

    num_layers: int
    pages: Mapping[int, Ints] = field(default_factory=dict)
    totals: Ints | None = None
    observations: int = 0

    def observe(self, clients: npt.ArrayLike, reached: npt.ArrayLike) -> "ObservedReach":
        """Count one round.

        Args:
            clients: Numbers of the round's clients, shape (clients,).
            reached: Whether each client reached each layer, shape (clients, layers).
        """
        ids, hits = np.asarray(clients, dtype=np.int64), np.asarray(reached, dtype=np.int64)
        if hits.shape != (len(ids), self.num_layers) and (ids.size or hits.size):
            raise InvalidSetting(
                f"reached has shape {hits.shape}; give shape (clients, layers), here ({len(ids)}, {self.num_layers})"
            )
        counts = np.ones((len(ids), self.num_layers + 1), dtype=np.int64)
        counts[:, 1:] = hits.reshape(len(ids), self.num_layers)
        pages, places = dict(self.pages), ids % _PAGE
        distinct = bool((ids[1:] > ids[:-1]).all())  # true for the sorted clients of a round
        for page, own in _by_page(ids):
            known = pages.get(page)
            pages[page] = self._zeros(_PAGE) if known is None else known.copy()
            if distinct:
                pages[page][places[own]] += counts[own]
            else:
                np.add.at(pages[page], places[own], counts[own])
        seen = self.observations + bool(len(ids))
        return ObservedReach(self.num_layers, pages, self._totals() + counts.sum(axis=0), seen)

    def probability(self, clients: npt.ArrayLike) -> Floats:
        """Estimate π_{u,l} of the given clients, shape (clients, layers)."""
        counts = self._counts(np.asarray(clients, dtype=np.int64))
        rounds, reached = counts[:, :1], counts[:, 1:]
        totals = self._totals()
        overall = (totals[1:] + 1) / (totals[0] + 1)
        smoothed = (reached + _PRIOR_ROUNDS * overall) / (rounds + _PRIOR_ROUNDS)
        enough = (rounds > 0) & (rounds >= min(self.observations, _SURE_AFTER))
        return np.where(enough & (reached == rounds), 1.0, smoothed)

    def to_arrays(self) -> dict[str, Ints]:
        """Return the counts as arrays, for a checkpoint.

        `clients` and `rounds` have shape (clients,), `reached` (clients, layers), `observations` (1,).
        """
        pages = sorted(self.pages)
        counts = np.concatenate([self._zeros(0), *(self.pages[page] for page in pages)])
        clients = (np.array(pages, dtype=np.int64)[:, None] * _PAGE + np.arange(_PAGE)).ravel()
        took_part = counts[:, 0] > 0
        return {
            "clients": clients[took_part],
            "rounds": counts[took_part, 0],
            "reached": counts[took_part, 1:],
            "observations": np.array([self.observations]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Ints]) -> "ObservedReach":
        """Return the value whose `to_arrays` gave `arrays`."""
        counts = np.concatenate([arrays["rounds"][:, None], arrays["reached"]], axis=1)
        empty = cls(arrays["reached"].shape[1])
        pages = {}
        for page, own in _by_page(arrays["clients"]):
            pages[page] = empty._zeros(_PAGE)
            pages[page][arrays["clients"][own] % _PAGE] = counts[own]
        return cls(empty.num_layers, pages, counts.sum(axis=0), int(arrays["observations"][0]))

    def _counts(self, ids: Ints) -> Ints:
        counts, places = self._zeros(len(ids)), ids % _PAGE
        for page, own in _by_page(ids):
            if page in self.pages:
                counts[own] = self.pages[page][places[own]]
        return counts

    def _totals(self) -> Ints:
        return self._zeros(1)[0] if self.totals is None else self.totals

    def _zeros(self, clients: int) -> Ints:
        return np.zeros((clients, self.num_layers + 1), dtype=np.int64)


@dataclass(frozen=True)
class ObservedSpeeds:
    """Each client's mean speed in workloads per second; `observe` gives the next one.

    A workload is one round's work on whole batches, with download and upload. The mean over a client's first ten rounds
    is plain; after that it is an exponential moving average with weight 0.1.

    Attributes:
        known: Maps a client to its number of rounds and its mean speed.

    >>> seen = ObservedSpeeds().observe([3, 8], [2.0, 0.5]).observe([3], [1.0])
    >>> seen.of([3, 8, 5])
    array([1.5, 0.5, nan])
    """

    known: Mapping[int, tuple[int, float]] = field(default_factory=dict)

    def observe(self, clients: npt.ArrayLike, speeds: npt.ArrayLike) -> "ObservedSpeeds":
        """Add one round: the numbers of its clients and their speeds, of shape (clients,)."""
        known = dict(self.known)
        ids = np.asarray(clients, dtype=np.int64).tolist()
        for client, speed in zip(ids, np.asarray(speeds, dtype=np.float64).tolist(), strict=True):
            rounds, mean = known.get(client, (0, 0.0))
            known[client] = rounds + 1, mean + (speed - mean) * max(1 / (rounds + 1), _FORGETTING)
        return ObservedSpeeds(known)

    def of(self, clients: npt.ArrayLike) -> Floats:
        """Return the clients' speeds, shape (clients,); NaN for clients never observed."""
        ids = np.asarray(clients, dtype=np.int64).tolist()
        if not self.known:
            return np.full(len(ids), np.nan)
        return np.array([self.known.get(client, (0, np.nan))[1] for client in ids], dtype=np.float64)

    def to_arrays(self) -> dict[str, Ints | Floats]:
        """Return `clients`, `rounds` and `speeds` as arrays of shape (clients,)."""
        clients = sorted(self.known)
        return {
            "clients": np.array(clients, dtype=np.int64),
            "rounds": np.array([self.known[client][0] for client in clients], dtype=np.int64),
            "speeds": np.array([self.known[client][1] for client in clients], dtype=np.float64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Ints | Floats]) -> "ObservedSpeeds":
        """Return the value whose `to_arrays` gave `arrays`."""
        columns = (arrays[name].tolist() for name in ("clients", "rounds", "speeds"))
        return cls({client: (rounds, speed) for client, rounds, speed in zip(*columns, strict=True)})


@dataclass(frozen=True)
class Chances:
    """The probabilities π_{u,l} of a round's clients as its record has them.

    Each field has one number per layer, to six decimals, or none if the round has no client.

    Attributes:
        empty: p_l, the probability that no client reaches the layer.
        mean: Mean of π_{u,l} over clients.
        least: Minimum of π_{u,l} over clients.
    """

    empty: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    least: tuple[float, ...] = ()

    @classmethod
    def of(cls, reach: Floats, min_contributors: int = 1, empty: Sequence[float] = ()) -> "Chances":
        """Summarise π_{u,l} over clients.

        Args:
            reach: π_{u,l}, shape (clients, layers).
            min_contributors: A layer with fewer contributors counts as empty.
            empty: p_l of these clients, if already computed.

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
    """Yield each page of some clients, and the positions of its clients among them."""
    if not len(ids):
        return
    pages = ids // _PAGE
    first, last = int(pages.min()), int(pages.max())
    if first == last:  # the usual case; searching for pages would take longer than all the rest
        yield first, slice(None)
        return
    if (pages[1:] >= pages[:-1]).all():  # sorted: the clients of a page are contiguous
        starts = [0, *(np.flatnonzero(pages[1:] > pages[:-1]) + 1).tolist(), len(pages)]
        yield from zip(pages[starts[:-1]].tolist(), map(slice, starts, starts[1:]), strict=False)
        return
    for page in np.unique(pages).tolist():
        yield page, pages == page
