"""Who is asked, how long they take: rounds drawn ahead of a run, and what a deadline would make of them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from salf import seeds, theory
from salf.devices import Cohort, CompletionTimes, Workload
from salf.values import Floats

_MOST_CLIENTS = 2000  # more are represented by a random sample
_MOST_NUMBERS = 4_000_000  # of times in memory
_ROUNDS = (20, 2000)  # at least and at most so many are drawn
_FIRST_ROUND = 1_000_000_000  # drawn rounds are none that a run plays: this is a forecast, not a replay


class Timing(Protocol):
    """What says how long clients take: a device model of `salf.devices`, or measured times."""

    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Draw when the clients of a round finish what."""
        ...

    def typical_seconds(self, workload: Workload) -> float:
        """Return how long an ordinary device takes for the whole job."""
        ...

    def reach(self, workload: Workload, cohort: Cohort, deadline_seconds: float) -> Floats | None:
        """Return the chance of each client to reach each layer, None where it has no closed form."""
        ...


@dataclass(frozen=True)
class Fleet:
    """A federation before its first round: `asked` of `population` clients get `workload` in each round.

    `seed` is that of the run that is planned: it fixes which clients are the slow ones, where that is for ever.
    """

    devices: Timing
    workload: Workload
    population: int
    asked: int
    seed: int

    @cached_property
    def clients(self) -> Cohort:
        """All clients, or a random sample of them where they are very many."""
        everyone = np.arange(self.population)
        if self.population > _MOST_CLIENTS:
            size = max(_MOST_CLIENTS, self.asked)
            everyone = np.sort(seeds.stream(self.seed, "plan").choice(self.population, size, replace=False))
        return Cohort(everyone, self.population, _FIRST_ROUND, self.seed)

    @cached_property
    def rounds(self) -> "DrawnRounds":
        """Rounds drawn for all clients at once, however many of them are asked in each."""
        everyone, workload = self.clients, self.workload
        numbers = len(everyone.clients) * workload.local_steps * workload.costs.num_layers
        count = min(max(_MOST_NUMBERS // numbers, _ROUNDS[0]), _ROUNDS[1])
        drawn = [
            self.devices.times(workload, Cohort(everyone.clients, everyone.population, _FIRST_ROUND + turn, self.seed))
            for turn in range(count)
        ]
        generator = seeds.stream(self.seed, "plan", 1)
        cohorts = [generator.permutation(len(everyone.clients))[: self.asked] for _ in drawn]
        return DrawnRounds(
            conveyed=np.stack([times.sent for times in drawn]),
            ready=np.stack([times.ready for times in drawn]),
            whole=np.stack([times.whole for times in drawn]),
            cohorts=np.stack(cohorts),
            give_up_seconds=drawn[0].give_up_seconds,
        )

    def reach(self, deadline_seconds: float) -> Floats:
        """Return π_{u,l}, shape (clients, layers): exact where the devices know it, else the frequency in the draws."""
        known = self.devices.reach(self.workload, self.clients, deadline_seconds)
        return self.rounds.frequency(deadline_seconds) if known is None else known

    def empty(self, reach: Floats) -> Floats:
        """Return p_l, the chance that none of those asked reaches layer l."""
        return theory.empty_probability(reach=reach, num_clients=min(self.asked, len(reach)))

    @property
    def asks_everyone(self) -> bool:
        """Whether all clients take part in every round."""
        return self.asked == self.population


@dataclass(frozen=True)
class DrawnRounds:
    """Times of many rounds, as in `salf.devices.CompletionTimes`, with the rounds in front.

    `conveyed` and `ready` have shape (rounds, clients, local steps, layers), `whole` (rounds, clients), and `cohorts`
    (rounds, asked) says which clients are asked in each.
    """

    conveyed: Floats
    ready: Floats
    whole: Floats
    cohorts: npt.NDArray[np.int64]
    give_up_seconds: float

    def frequency(self, deadline_seconds: float) -> Floats:
        """Return how often each client reached each layer at least once, shape (clients, layers)."""
        return np.asarray((self.conveyed[:, :, 0] <= deadline_seconds).mean(axis=0), dtype=np.float64)

    def round_seconds(self, deadline_seconds: float = np.inf) -> float:
        """Return how long a round lasts on average: till the deadline, or till the last client has finished.

        Without a deadline it ends with the last client that answers, or when those that never do are given up.
        """
        patience = self.give_up_seconds if np.isinf(deadline_seconds) else np.inf
        whole = np.take_along_axis(self.whole, self.cohorts, axis=1)
        last = np.where(np.isfinite(whole), whole, patience).max(axis=1)
        return float(np.minimum(last, deadline_seconds).mean())

    def kept(self, deadline_seconds: float, costs: Floats) -> tuple[float, float]:
        """Return the shares of the finished backward work that layer-wise updates keep, and that dropping keeps.

        NaN where nothing is finished. What is finished but cannot be sent in time is lost either way.
        """
        finished = (self.ready <= deadline_seconds).sum(axis=2) @ costs
        conveyed = (self.conveyed <= deadline_seconds).sum(axis=2) @ costs
        total = float(finished.sum())
        if not total:
            return float("nan"), float("nan")
        return float(conveyed.sum()) / total, float(conveyed[self.whole <= deadline_seconds].sum()) / total

    def deadlines(self, count: int) -> Floats:
        """Return `count` deadlines, or fewer, at which ever more of the work is conveyed, from hardly any to all."""
        times = np.sort(self.conveyed[np.isfinite(self.conveyed)])
        places = np.linspace(0.02, 0.999, count) * (len(times) - 1)
        return np.unique(round_up(times[places.astype(np.int64)]))


def round_up(seconds: Floats) -> Floats:
    """Round up to three significant digits: never down, or what is conveyed at that very time would be late.

    >>> round_up(np.array([1.0, 0.123401, 4567.0]))
    array([1.00e+00, 1.24e-01, 4.57e+03])
    """
    unit = 10.0 ** (np.floor(np.log10(seconds)) - 2)
    rounded = np.ceil(seconds / unit - 1e-9) * unit
    return np.array([float(f"{value:.3g}") for value in rounded])
