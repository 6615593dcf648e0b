"""The clients at work under an asynchronous method: since when, until when, and from which weights."""

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
    """A client at work.

    Attributes:
        client: The client's number.
        job: Which job of the client it is, counted from 1.
        version: The version of the global model from which it began.
        began_s: When it began, in virtual seconds.
        ends_s: When the whole model reaches the server, or the server gives the client up; infinite for neither.
        answers: Whether the model reaches the server.
    """

    client: int
    job: int
    version: int
    began_s: float
    ends_s: float
    answers: bool


@dataclass(frozen=True)
class ActiveJobs:
    """What an asynchronous method hands to the next round, beside the global weights.

    Attributes:
        under_way: The active jobs in the order of their clients.
        starts: The weights from which jobs that answer began, by version.
        begun: How many jobs each client has begun.
        version: How often the global model has moved.
        buffer: Results that wait to move it.
    """

    under_way: tuple[ActiveJob, ...] = ()
    starts: Mapping[int, Weights] = field(default_factory=dict)
    begun: Mapping[int, int] = field(default_factory=dict)
    version: int = 0
    buffer: Buffer = field(default_factory=Buffer)


class Dispatcher:
    """Starts jobs and returns them in the order in which they end.

    Draws for the n-th job of a client have n as their round, so each draw has an address.

    Args:
        devices: The device model.
        workload: What every job computes.
        population: The number of clients.
        seed: The seed of the run.
        active_jobs: An earlier `snapshot`, from which to continue.
    """

    def __init__(
        self, devices: Devices, workload: Workload, population: int, seed: int, active_jobs: ActiveJobs
    ) -> None:
        self._devices, self._workload, self._population, self._seed = devices, workload, population, seed
        self._queue = [(active_job.ends_s, active_job.client, active_job) for active_job in active_jobs.under_way]
        heapq.heapify(self._queue)
        self._starts, self._begun = dict(active_jobs.starts), dict(active_jobs.begun)
        self._users = Counter(active_job.version for active_job in active_jobs.under_way if active_job.answers)

    def snapshot(self, server: ServerModel) -> ActiveJobs:
        """Return the jobs as a value, with the version and the buffer of the server's model."""
        starts, begun = dict(self._starts), dict(self._begun)
        return ActiveJobs(self.under_way, starts, begun, server.version, server.buffer)

    @property
    def under_way(self) -> tuple[ActiveJob, ...]:
        """The active jobs in the order of their clients."""
        return tuple(sorted((active_job for _, _, active_job in self._queue), key=lambda active_job: active_job.client))

    @property
    def next_s(self) -> float:
        """When the next job ends, in virtual seconds."""
        return self._queue[0][0]

    def send(self, clients: Sequence[int], now_s: float, server: ServerModel) -> None:
        """Start the next job of some clients.

        Args:
            clients: Clients that are idle.
            now_s: The virtual time in seconds.
            server: The model that they receive.
        """
        for client in clients:
            job = self._begun[client] = self._begun.get(client, 0) + 1
            times = self.times(client, job)
            answers = math.isfinite(times.whole[0])
            lasts = float(times.whole[0]) if answers else times.give_up_seconds
            active_job = ActiveJob(client, job, server.version, now_s, now_s + lasts, answers)
            heapq.heappush(self._queue, (active_job.ends_s, client, active_job))
            if answers:
                self._starts[server.version] = server.weights
                self._users[server.version] += 1

    def pop(self) -> tuple[ActiveJob, Weights]:
        """Remove the job that ends next, of several at once the one of the client with the lowest number.

        Returns:
            The job and the weights from which it began; no weights if the client never answered.
        """
        _, _, active_job = heapq.heappop(self._queue)
        if not active_job.answers:
            return active_job, {}
        self._users[active_job.version] -= 1
        in_use = self._users[active_job.version] > 0
        return active_job, self._starts[active_job.version] if in_use else self._starts.pop(active_job.version)

    def successor(self, active_job: ActiveJob) -> int:
        """Draw the client that begins when a job has ended, among the idle ones."""
        busy = sorted(client for _, client, _ in self._queue)
        idle = self._population - len(busy)
        place = int(seeds.stream(self._seed, "successor", active_job.job, active_job.client).integers(idle))
        for client in busy:  # turn the place among the idle clients into a client's number
            place += client <= place
        return place

    def times(self, client: int, job: int) -> CompletionTimes:
        """Draw when a client finishes each layer of a job."""
        return self._devices.times(self._workload, self.cohort(client, job))

    def cohort(self, client: int, job: int) -> Cohort:
        """Return the cohort of one client, with the number of its job as the round."""
        return Cohort(np.array([client]), self._population, job, self._seed)
