"""A federation before its first round, and rounds drawn to forecast its deadlines."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from salf import seeds, theory
from salf.devices import Cohort, CompletionTimes, Workload
from salf.values import Floats, Ints

_MOST_CLIENTS = 2000  # more are represented by a random sample
_MOST_NUMBERS = 4_000_000  # times in memory
_ROUNDS = (20, 2000)  # the least and largest number of drawn rounds
_FIRST_ROUND = 1_000_000_000  # far beyond the rounds of a run: this is a forecast, not a replay


class Timing(Protocol):
    """A source of the clients' times: a device model or measured times."""

    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Draw the times at which a cohort completes its layers."""
        ...

    def typical_seconds(self, workload: Workload) -> float:
        """Return the seconds that a typical device needs for the whole workload."""
        ...

    def reach(self, workload: Workload, cohort: Cohort, deadline_seconds: float) -> Floats | None:
        """Return π_{u,l}, shape (clients, layers), or None if it has no closed form."""
        ...


@dataclass(frozen=True)
class Fleet:
    """A federation before its first round.

    Attributes:
        devices: How long the clients take.
        workload: The work of each client in a round.
        population: Number of clients.
        asked: Clients per round, at most `population`.
        seed: The seed of the planned run; it fixes which clients are permanently slow.
    """

    devices: Timing
    workload: Workload
    population: int
    asked: int
    seed: int

    @cached_property
    def clients(self) -> Cohort:
        """All clients, or a random sample of a very large population."""
        everyone = np.arange(self.population)
        if self.population > _MOST_CLIENTS:
            size = max(_MOST_CLIENTS, self.asked)
            everyone = np.sort(seeds.stream(self.seed, "plan").choice(self.population, size, replace=False))
        return Cohort(everyone, self.population, _FIRST_ROUND, self.seed)

    @cached_property
    def rounds(self) -> "DrawnRounds":
        """Rounds drawn for all clients, with a cohort in each."""
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
            sent=np.stack([times.sent for times in drawn]),
            ready=np.stack([times.ready for times in drawn]),
            whole=np.stack([times.whole for times in drawn]),
            cohorts=np.stack(cohorts),
            give_up_seconds=drawn[0].give_up_seconds,
        )

    def reach(self, deadline_seconds: float) -> Floats:
        """Return π_{u,l}, shape (clients, layers).

        It is exact if the devices have a closed form, else the frequency in the drawn rounds.
        """
        known = self.devices.reach(self.workload, self.clients, deadline_seconds)
        return self.rounds.frequency(deadline_seconds) if known is None else known

    def empty(self, reach: Floats) -> Floats:
        """Return p_l, the probability that no client of a round reaches layer l."""
        return theory.empty_probability(reach=reach, num_clients=min(self.asked, len(reach)))

    @property
    def asks_everyone(self) -> bool:
        """Whether all clients take part in every round."""
        return self.asked == self.population


@dataclass(frozen=True)
class DrawnRounds:
    """Times of many rounds, as in `salf.devices.CompletionTimes`, stacked.

    Attributes:
        sent: When each layer has reached the server, shape (rounds, clients, local steps, layers).
        ready: When its gradient is complete, of the same shape.
        whole: When a client has sent its whole workload, shape (rounds, clients).
        cohorts: Positions of the clients of each round, shape (rounds, clients per round).
        give_up_seconds: How long a server without a deadline waits for clients that never answer.
    """

    sent: Floats
    ready: Floats
    whole: Floats
    cohorts: Ints
    give_up_seconds: float

    def frequency(self, deadline_seconds: float) -> Floats:
        """Return the share of rounds in which each client reached each layer.

        The shape is (clients, layers).
        """
        return np.asarray((self.sent[:, :, 0] <= deadline_seconds).mean(axis=0), dtype=np.float64)

    def round_seconds(self, deadline_seconds: float = np.inf) -> float:
        """Return the mean duration of a round.

        It ends at the deadline, or when the last client has finished. Without a deadline, clients that never answer are
        given up after `give_up_seconds`.
        """
        patience = self.give_up_seconds if np.isinf(deadline_seconds) else np.inf
        whole = np.take_along_axis(self.whole, self.cohorts, axis=1)
        last = np.where(np.isfinite(whole), whole, patience).max(axis=1)
        return float(np.minimum(last, deadline_seconds).mean())

    def kept(self, deadline_seconds: float, costs: Floats) -> tuple[float, float]:
        """Return the shares of finished work that layer-wise updates and dropping keep.

        Finished work that cannot be sent in time is lost in both. The shares are NaN if no work is finished.

        Args:
            deadline_seconds: The deadline.
            costs: Costs of the layers' backward passes, shape (layers,).
        """
        finished = (self.ready <= deadline_seconds).sum(axis=2) @ costs
        sent = (self.sent <= deadline_seconds).sum(axis=2) @ costs
        total = float(finished.sum())
        if not total:
            return float("nan"), float("nan")
        return float(sent.sum()) / total, float(sent[self.whole <= deadline_seconds].sum()) / total

    def deadlines(self, count: int) -> Floats:
        """Return at most `count` deadlines, from almost no work sent to all of it."""
        times = np.sort(self.sent[np.isfinite(self.sent)])
        places = np.linspace(0.02, 0.999, count) * (len(times) - 1)
        return np.unique(round_up(times[places.astype(np.int64)]))


def round_up(seconds: Floats) -> Floats:
    """Round up to three significant digits: a layer sent at that time is not late.

    >>> round_up(np.array([1.0, 0.123401, 4567.0]))
    array([1.00e+00, 1.24e-01, 4.57e+03])
    """
    unit = 10.0 ** (np.floor(np.log10(seconds)) - 2)
    rounded = np.ceil(seconds / unit - 1e-9) * unit
    return np.array([float(f"{value:.3g}") for value in rounded])
