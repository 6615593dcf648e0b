"""Clients at work where there are no rounds: who is, since when, until when, and from which weights."""

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from salf import seeds
from salf.aggregation import Buffer, ServerModel, Weights
from salf.devices import Cohort, Devices, Job, Times


@dataclass(frozen=True)
class Flight:
    """A client at work on its `job`-th job, from the server's weights of `version`.

    It began at `began_s` and conveys its whole job at `ends_s`, or is given up then if it never `answers`; infinite if
    nobody ever gives it up.
    """

    client: int
    job: int
    version: int
    began_s: float
    ends_s: float
    answers: bool


@dataclass(frozen=True)
class Flights:
    """All that an asynchronous method hands on from one round to the next, beside the server's weights.

    `under_way` are the flights in the order of their clients, `starts` the weights, by version, from which those began
    who will answer. `jobs` counts the jobs that each client has begun. `version` and `buffer` are the server's.
    """

    under_way: tuple[Flight, ...]
    starts: Mapping[int, Weights]
    jobs: Mapping[int, int]
    version: int = 0
    buffer: Buffer = field(default_factory=Buffer)


class Dispatcher:
    """Sends clients to work, and tells who is done next.

    The draws of a client's n-th job have n for their round, so that every draw has an address.
    """

    def __init__(self, devices: Devices, job: Job, population: int, seed: int) -> None:
        self._devices, self._job, self._population, self._seed = devices, job, population, seed
        self._queue: list[tuple[float, int, Flight]] = []
        self._starts: dict[int, Weights] = {}
        self._users: Counter[int] = Counter()
        self._jobs: dict[int, int] = {}

    def restore(self, flights: Flights) -> None:
        """Go on from where flights were handed on."""
        self._queue = [(flight.ends_s, flight.client, flight) for flight in flights.under_way]
        heapq.heapify(self._queue)
        self._starts, self._jobs = dict(flights.starts), dict(flights.jobs)
        self._users = Counter(flight.version for flight in flights.under_way if flight.answers)

    def hand_on(self, server: ServerModel) -> Flights:
        """Return all that is to be handed on."""
        under_way = sorted((flight for _, _, flight in self._queue), key=lambda flight: flight.client)
        return Flights(tuple(under_way), dict(self._starts), dict(self._jobs), server.version, server.buffer)

    @property
    def next_s(self) -> float:
        """When the next flight ends."""
        return self._queue[0][0]

    def send(self, clients: Sequence[int], now_s: float, server: ServerModel) -> None:
        """Let clients begin their next job from the server's weights."""
        for client in clients:
            job = self._jobs.get(client, 0) + 1
            times = self.times(client, job)
            answers = math.isfinite(times.whole[0])
            lasts = float(times.whole[0]) if answers else times.give_up_seconds
            flight = Flight(client, job, server.version, now_s, now_s + lasts, answers)
            self._jobs[client] = job
            heapq.heappush(self._queue, (flight.ends_s, client, flight))
            if answers:
                self._starts[server.version] = server.weights
                self._users[server.version] += 1

    def land(self) -> tuple[Flight, Weights]:
        """Take out the flight that ends next, of several the lowest client's, and the weights from which it began.

        There are no weights where the client never answered.
        """
        _, _, flight = heapq.heappop(self._queue)
        if not flight.answers:
            return flight, {}
        self._users[flight.version] -= 1
        in_use = self._users[flight.version] > 0
        return flight, self._starts[flight.version] if in_use else self._starts.pop(flight.version)

    def successor(self, flight: Flight) -> int:
        """Draw who begins in place of a flight that has landed, among those who are idle."""
        busy = sorted(client for _, client, _ in self._queue)
        idle = self._population - len(busy)
        place = int(seeds.stream(self._seed, "successor", flight.job, flight.client).integers(idle))
        for client in busy:  # count on, past those who are at work
            place += client <= place
        return place

    def times(self, client: int, job: int) -> Times:
        """Draw when a client finishes what of its `job`-th job."""
        return self._devices.times(self._job, self.cohort(client, job))

    def cohort(self, client: int, job: int) -> Cohort:
        """Return a client on its `job`-th job, alone."""
        return Cohort(np.array([client]), self._population, job, self._seed)
