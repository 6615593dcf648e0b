"""The clients of a round, and what chance decides about them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from salf import seeds
from salf.values import Floats

_NO_ROUND = -1


@dataclass(frozen=True)
class Cohort:
    """The clients of one round: their numbers, out of `population`, and the address of their random draws.

    `batch_fraction`, of shape (clients,), is the share of its batch that each computes on; None: all of it. `cohort_batch` are the
    cohorts together with which is drawn for this one, which changes nothing but the time that it takes.
    """

    clients: npt.NDArray[np.int64]
    population: int
    round: int
    seed: int
    batch_fraction: Floats | None = None
    cohort_batch: "CohortBatch | None" = None

    def uniforms(self, purpose: str, count: int, *, lasting: bool = False) -> Floats:
        """Draw `count` uniform numbers per client, the same in every round if `lasting`; shape (clients, count)."""
        if self.cohort_batch is not None:
            return self.cohort_batch.uniforms(purpose, count, lasting=lasting)[self.cohort_batch.places(self.round)]
        return seeds.uniforms(self.seed, purpose, 0 if lasting else self.round, self.clients, count)

    def normals(self, purpose: str, *, lasting: bool = False) -> Floats:
        """Draw one standard normal number per client, the same in every round if `lasting`; shape (clients,)."""
        return np.asarray(ndtri(self.uniforms(purpose, 1, lasting=lasting)[:, 0]), dtype=np.float64)

    def computing(self, times: Floats) -> Floats:
        """Shorten times of computing on whole batches, whose first axis is that of the clients, to the share given."""
        if self.batch_fraction is None:
            return times
        return np.asarray(times * self.batch_fraction.reshape(-1, *[1] * (times.ndim - 1)), dtype=np.float64)


class CohortBatch:
    """Cohorts of several rounds, for all of which is drawn at once: a small draw takes hardly less time than a large.

    `cohorts` are the given ones, with this as their company; `clients` are those of one after the other, and `everyone`
    is one cohort of them all, each in its own round.
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
        """Return where in `clients` those of a round are."""
        return self._places[round]

    def uniforms(self, purpose: str, count: int, *, lasting: bool = False) -> Floats:
        """Return what `Cohort.uniforms` is to return, for all clients."""
        key = purpose, count, lasting
        if key not in self._drawn:
            rounds = 0 if lasting else self._rounds
            self._drawn[key] = seeds.uniforms(self._seed, purpose, rounds, self.clients, count)
        return self._drawn[key]


def straggling(cohort: Cohort, share: float, *, lasting: bool) -> npt.NDArray[np.bool_]:
    """Say who straggles: this very share of the population for the run, or each client by chance in each round."""
    if not lasting:
        return cohort.uniforms("straggler", 1)[:, 0] < share
    return _marked(cohort.seed, cohort.population, math.floor(share * cohort.population + 0.5))[cohort.clients]


@lru_cache(maxsize=8)
def _marked(seed: int, population: int, count: int) -> npt.NDArray[np.bool_]:
    """Choose `count` of the population once for the run."""
    mask = np.zeros(population, dtype=np.bool_)
    mask[seeds.stream(seed, "straggler").permutation(population)[:count]] = True
    return mask
