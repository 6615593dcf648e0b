"""Clients at work where there are no rounds: who is, since when, until when, and from which weights."""

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from salf import seeds
from salf.aggregation import Buffer, ServerModel, Weights
from salf.devices import Cohort, CompletionTimes, Devices, Workload


@dataclass(frozen=True)
class ActiveJob:
    """A client at work on its `workload`-th job, from the server's weights of `version`.

    It began at `began_s` and conveys its whole job at `ends_s`, or is given up then if it never `answers`; infinite if
    nobody ever gives it up.
    """

    client: int
    workload: int
    version: int
    began_s: float
    ends_s: float
    answers: bool


@dataclass(frozen=True)
class ActiveJobs:
    """All that an asynchronous method hands on from one round to the next, beside the server's weights.

    `under_way` are the flights in the order of their clients, `starts` the weights, by version, from which those began
    who will answer. `workloads` counts the jobs that each client has begun. `version` and `buffer` are the server's.
    """

    under_way: tuple[ActiveJob, ...]
    starts: Mapping[int, Weights]
    workloads: Mapping[int, int]
    version: int = 0
    buffer: Buffer = field(default_factory=Buffer)


class Dispatcher:
    """Sends clients to work, and tells who is done next.

    The draws of a client's n-th job have n for their round, so that every draw has an address.
    """

    def __init__(self, devices: Devices, workload: Workload, population: int, seed: int) -> None:
        self._devices, self._job, self._population, self._seed = devices, workload, population, seed
        self._queue: list[tuple[float, int, ActiveJob]] = []
        self._starts: dict[int, Weights] = {}
        self._users: Counter[int] = Counter()
        self._jobs: dict[int, int] = {}

    def restore(self, active_jobs: ActiveJobs) -> None:
        """Go on from where flights were handed on."""
        self._queue = [(active_job.ends_s, active_job.client, active_job) for active_job in active_jobs.under_way]
        heapq.heapify(self._queue)
        self._starts, self._jobs = dict(active_jobs.starts), dict(active_jobs.workloads)
        self._users = Counter(active_job.version for active_job in active_jobs.under_way if active_job.answers)

    def snapshot(self, server: ServerModel) -> ActiveJobs:
        """Return all that is to be handed on."""
        under_way = sorted((active_job for _, _, active_job in self._queue), key=lambda active_job: active_job.client)
        return ActiveJobs(tuple(under_way), dict(self._starts), dict(self._jobs), server.version, server.buffer)

    @property
    def next_s(self) -> float:
        """When the next flight ends."""
        return self._queue[0][0]

    def send(self, clients: Sequence[int], now_s: float, server: ServerModel) -> None:
        """Let clients begin their next job from the server's weights."""
        for client in clients:
            workload = self._jobs.get(client, 0) + 1
            times = self.times(client, workload)
            answers = math.isfinite(times.whole[0])
            lasts = float(times.whole[0]) if answers else times.give_up_seconds
            active_job = ActiveJob(client, workload, server.version, now_s, now_s + lasts, answers)
            self._jobs[client] = workload
            heapq.heappush(self._queue, (active_job.ends_s, client, active_job))
            if answers:
                self._starts[server.version] = server.weights
                self._users[server.version] += 1

    def pop(self) -> tuple[ActiveJob, Weights]:
        """Take out the flight that ends next, of several the lowest client's, and the weights from which it began.

        There are no weights where the client never answered.
        """
        _, _, active_job = heapq.heappop(self._queue)
        if not active_job.answers:
            return active_job, {}
        self._users[active_job.version] -= 1
        in_use = self._users[active_job.version] > 0
        return active_job, self._starts[active_job.version] if in_use else self._starts.pop(active_job.version)

    def successor(self, active_job: ActiveJob) -> int:
        """Draw who begins in place of a flight that has landed, among those who are idle."""
        busy = sorted(client for _, client, _ in self._queue)
        idle = self._population - len(busy)
        place = int(seeds.stream(self._seed, "successor", active_job.workload, active_job.client).integers(idle))
        for client in busy:  # count on, past those who are at work
            place += client <= place
        return place

    def times(self, client: int, workload: int) -> CompletionTimes:
        """Draw when a client finishes what of its `workload`-th job."""
        return self._devices.times(self._job, self.cohort(client, workload))

    def cohort(self, client: int, workload: int) -> Cohort:
        """Return a client on its `workload`-th job, alone."""
        return Cohort(np.array([client]), self._population, workload, self._seed)
