"""The clients of a round, and the address of their random draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from salf import seeds
from salf.values import Floats, Ints

_NO_ROUND = -1


@dataclass(frozen=True)
class Cohort:
    """The clients of one round, and the address of their random draws.

    Attributes:
        clients: The indices of the clients, shape (clients,).
        population: The number of clients from which the cohort was drawn.
        round: The number of the round, from 1.
        seed: The seed of the run.
        batch_fraction: The share of its batch that each client computes on, shape (clients,); None for whole batches.
        cohort_batch: Cohorts whose numbers are drawn together with this one's. It changes only the cost of drawing.

    >>> cohort = Cohort(np.array([2, 5]), population=10, round=1, seed=0)
    >>> cohort.uniforms("speed", 3).shape
    (2, 3)
    """

    clients: Ints
    population: int
    round: int
    seed: int
    batch_fraction: Floats | None = None
    cohort_batch: "CohortBatch | None" = None

    def uniforms(self, purpose: str, count: int, *, lasting: bool = False) -> Floats:
        """Draw `count` uniform numbers for each client, shape (clients, count).

        Args:
            purpose: Names the draw; another purpose gives independent numbers.
            count: How many numbers each client gets.
            lasting: Whether a client gets the same numbers in every round.
        """
        if self.cohort_batch is not None:
            return self.cohort_batch.uniforms(purpose, count, lasting=lasting)[self.cohort_batch.places(self.round)]
        return seeds.uniforms(self.seed, purpose, 0 if lasting else self.round, self.clients, count)

    def normals(self, purpose: str, *, lasting: bool = False) -> Floats:
        """Draw one standard normal number for each client, shape (clients,); see `uniforms`."""
        return np.asarray(ndtri(self.uniforms(purpose, 1, lasting=lasting)[:, 0]), dtype=np.float64)

    def computing(self, times: Floats) -> Floats:
        """Scale the times of computing whole batches, shape (clients, …), to the clients' shares of a batch."""
        if self.batch_fraction is None:
            return times
        return np.asarray(times * self.batch_fraction.reshape(-1, *[1] * (times.ndim - 1)), dtype=np.float64)


class CohortBatch:
    """Cohorts of several rounds whose numbers are drawn at once, since a small draw costs nearly as much as a large.

    Attributes:
        cohorts: The cohorts, now drawing through this batch.
        clients: The clients of all cohorts, one cohort after another.
        everyone: One cohort of all these clients, each in its own round.
    """

    def __init__(self, cohorts: Sequence[Cohort]) -> None:
        self.cohorts = [replace(cohort, cohort_batch=self) for cohort in cohorts]
        self.clients = np.concatenate([cohort.clients for cohort in cohorts])
        self.everyone = replace(cohorts[0], clients=self.clients, round=_NO_ROUND, cohort_batch=self)
        sizes = [len(cohort.clients) for cohort in cohorts]
        ends = np.cumsum(sizes).tolist()
        self._places = {
            cohort.round: slice(end - size, end) for cohort, size, end in zip(cohorts, sizes, ends, strict=True)
        } | {_NO_ROUND: slice(None)}
        self._seed = cohorts[0].seed
        self._rounds = np.repeat([cohort.round for cohort in cohorts], sizes)
        self._drawn: dict[tuple[str, int, bool], Floats] = {}

    def places(self, round: int) -> slice:
        """Return where in `clients` the clients of a round are."""
        return self._places[round]

    def uniforms(self, purpose: str, count: int, *, lasting: bool = False) -> Floats:
        """Return what `Cohort.uniforms` returns, for all clients."""
        key = purpose, count, lasting
        if key not in self._drawn:
            rounds = 0 if lasting else self._rounds
            self._drawn[key] = seeds.uniforms(self._seed, purpose, rounds, self.clients, count)
        return self._drawn[key]


def stragglers_among(cohort: Cohort, share: float, *, lasting: bool) -> npt.NDArray[np.bool_]:
    """Return which clients of a cohort are stragglers, shape (clients,).

    Args:
        cohort: The clients.
        share: The share of stragglers.
        lasting: Whether exactly that share of the population straggles for the whole run. Otherwise each client
            straggles by chance in each round.
    """
    if not lasting:
        return cohort.uniforms("straggler", 1)[:, 0] < share
    return _marked(cohort.seed, cohort.population, math.floor(share * cohort.population + 0.5))[cohort.clients]


@lru_cache(maxsize=8)
def _marked(seed: int, population: int, count: int) -> npt.NDArray[np.bool_]:
    """Choose `count` of the population once for the run."""
    mask = np.zeros(population, dtype=np.bool_)
    mask[seeds.stream(seed, "straggler").permutation(population)[:count]] = True
    return mask
