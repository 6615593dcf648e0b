"""Asynchronous methods: an event loop on the virtual clock, where the server acts on each result as it arrives."""

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from salf import seeds
from salf.aggregation import Aggregation, ClientResult, Contributors, ServerModel, Weights
from salf.devices import Cohort, CompletionTimes
from salf.errors import check_positive
from salf.methods import AsynchronousMethod
from salf.records import RoundRecord
from salf.simulation.compatibility import draw_times
from salf.simulation.federation import SimulatedFederation
from salf.simulation.server_state import ActiveJob, ActiveJobs, ServerState


@dataclass
class _Tally:
    """What happens in a round.

    Attributes:
        at_work: Jobs that are under way at some time of the round.
        begun: Those of them that begin in it.
        applied: Jobs that end with a result which the method uses.
        rejected: Jobs that end with a result which is refused.
        finished: The work that ended in the round, in whole jobs; a client that is given up finishes part of one.
    """

    at_work: int
    begun: int
    applied: int = 0
    rejected: int = 0
    finished: float = 0.0


class Dispatcher:
    """Starts jobs and returns them in the order in which they end.

    Draws for the n-th job of a client have n as their round, so each draw has an address.

    Args:
        federation: The set-up: the device model, what every job computes, the number of clients and the seed.
        jobs: An earlier `snapshot`, from which to continue.
    """

    def __init__(self, federation: SimulatedFederation, jobs: ActiveJobs) -> None:
        self._experiment, self._workload = federation.experiment, federation.workload
        self._queue = [(job.ends_s, job.client, job) for job in jobs.under_way]
        heapq.heapify(self._queue)
        self._starts, self._begun = dict(jobs.starts), dict(jobs.begun)
        self._users = Counter(job.version for job in jobs.under_way if job.answers)

    def snapshot(self, server: ServerModel) -> ActiveJobs:
        """Return the jobs as a value, with the version and the buffer of the server's model."""
        return ActiveJobs(self.under_way, dict(self._starts), dict(self._begun), server.version, server.buffer)

    @property
    def under_way(self) -> tuple[ActiveJob, ...]:
        """The active jobs in the order of their clients."""
        return tuple(sorted((job for _, _, job in self._queue), key=lambda job: job.client))

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
            number = self._begun[client] = self._begun.get(client, 0) + 1
            times = self.times(client, number)
            answers = math.isfinite(times.whole[0])
            ends_s = now_s + (float(times.whole[0]) if answers else times.give_up_seconds)
            job = ActiveJob(client, number, server.version, now_s, ends_s, answers)
            heapq.heappush(self._queue, (ends_s, client, job))
            if answers:
                self._starts[server.version] = server.weights
                self._users[server.version] += 1

    def pop(self) -> tuple[ActiveJob, Weights]:
        """Remove the job that ends next, of several at once the one of the client with the lowest number.

        Returns:
            The job and the weights from which it began; no weights if the client never answered.
        """
        _, _, job = heapq.heappop(self._queue)
        if not job.answers:
            return job, {}
        self._users[job.version] -= 1
        return job, self._starts[job.version] if self._users[job.version] else self._starts.pop(job.version)

    def successor(self, job: ActiveJob) -> int:
        """Draw the client that begins when a job has ended, among the idle ones."""
        busy = sorted(client for _, client, _ in self._queue)
        draw = seeds.stream(self._experiment.seed, "successor", job.job, job.client)
        place = int(draw.integers(self._experiment.data.clients - len(busy)))
        for client in busy:  # turn the place among the idle clients into a client's number
            place += client <= place
        return place

    def times(self, client: int, job: int) -> CompletionTimes:
        """Draw when a client finishes each layer of a job."""
        return draw_times(self._experiment.devices, self._workload, self.cohort(client, job))

    def cohort(self, client: int, job: int) -> Cohort:
        """Return the cohort of one client, with the number of its job as the round."""
        return Cohort(np.array([client]), self._experiment.data.clients, job, self._experiment.seed)


class AsynchronousRounds:
    """The rounds of an asynchronous method: equal stretches of the virtual clock.

    As many clients as a cohort has are at work at any time. When a job ends, the method acts on its result, and a
    client drawn among the idle ones begins at once with the current weights; without idle clients it is the same one.
    Events at the same time follow the clients' numbers. A client that never answers is given up after the time that
    its device model states, and replaced in the same way.

    Args:
        federation: The set-up.
        method: The method.
    """

    def __init__(self, federation: SimulatedFederation, method: AsynchronousMethod) -> None:
        self._federation, self._method = federation, method
        workload, self._layers = federation.workload, federation.layers
        self._steps = np.full((1, len(self._layers)), workload.local_steps, dtype=np.int64)
        self._seconds = method.round_seconds(federation.experiment.devices.typical_seconds(workload))
        check_positive(f"the round of method '{method.name}'", self._seconds)
        kinds = {name: self._layers.kind_of(name, buffer) for name, buffer in federation.model.named_buffers()}
        self._statistics = frozenset(n for layer in self._layers for n in layer.buffers if kinds[n] == "statistic")

    def play(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """Play the round after `state`; return the state after it and its record."""
        end_s = state.time_s + self._seconds
        dispatcher, server = self._resume(state)
        at_work = dispatcher.under_way
        tally = _Tally(len(at_work), begun=sum(job.began_s >= state.time_s for job in at_work))
        while dispatcher.next_s <= end_s:
            job, start = dispatcher.pop()
            server = self._receive(server, job, start, tally, dispatcher)
            dispatcher.send([dispatcher.successor(job)], job.ends_s, server)
            if job.ends_s < end_s:  # a client that begins as the round ends is at work in the next one
                tally.at_work += 1
                tally.begun += 1
        jobs = dispatcher.snapshot(server)
        after = replace(state, round=state.round + 1, time_s=end_s, weights=server.weights, active_jobs=jobs)
        return after, self._record(after, tally)

    def _resume(self, state: ServerState) -> tuple[Dispatcher, ServerModel]:
        """Return the jobs and the server's model of a state; before the first round, start the first jobs."""
        jobs = state.active_jobs or ActiveJobs()
        dispatcher = Dispatcher(self._federation, jobs)
        server = ServerModel(state.weights, jobs.version, jobs.buffer)
        if state.active_jobs is None:
            dispatcher.send(self._federation.sampler.draw_cohort(1).clients.tolist(), state.time_s, server)
        return dispatcher, server

    def _receive(
        self, server: ServerModel, job: ActiveJob, start: Weights, tally: _Tally, dispatcher: Dispatcher
    ) -> ServerModel:
        """Return the server's model after a job has ended, and count the job."""
        if not job.answers:
            tally.finished += self._finished_share(job, dispatcher)
            return server
        tally.finished += 1
        model = self._train(job, start, dispatcher)
        if model is None:
            tally.rejected += 1
            return server
        tally.applied += 1
        result = ClientResult(start, model, server.version - job.version)
        return self._method.receive(server, result, self._statistics)

    def _train(self, job: ActiveJob, start: Weights, dispatcher: Dispatcher) -> Weights | None:
        """Return the client's model after its job; None if it is refused."""
        cohort = dispatcher.cohort(job.client, job.job)
        tasks = self._federation.sampler.tasks(cohort, self._steps, self._method.proximal)
        running = Aggregation(start, self._layers, Contributors())
        accepted = self._federation.engine.train_cohort(start, tasks, running)
        result = running.finish()
        return result.state if accepted.all() and not result.overflowed else None

    def _finished_share(self, job: ActiveJob, dispatcher: Dispatcher) -> float:
        """Return the share of its backward work that a client had finished when it was given up."""
        times, costs = dispatcher.times(job.client, job.job), self._federation.workload.backward
        return float((times.steps_ready_by(times.give_up_seconds) * costs).sum() / (self._steps * costs).sum())

    def _record(self, after: ServerState, tally: _Tally) -> RoundRecord:
        """Return the record of the round that led to a state."""
        accuracy, loss = self._federation.evaluator.test(after.round, after.weights)
        size, sent = sum(self._federation.workload.costs.layer_bytes), tally.applied + tally.rejected
        return RoundRecord(
            round=after.round,
            time_s=after.time_s,
            deadline_s=None,
            clients=tally.at_work,
            contributors=(tally.applied,) * len(self._layers),
            depths=(tally.at_work - sent, *[0] * (len(self._layers) - 1), sent),
            work_kept=tally.applied / tally.finished if tally.finished else None,
            bytes_down=size * tally.begun,
            bytes_up=size * sent,
            rejected=tally.rejected,
            accuracy=accuracy,
            loss=loss,
            engine=self._federation.engine.name,
        )
