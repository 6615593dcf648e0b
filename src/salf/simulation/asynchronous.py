"""Asynchronous methods: an event loop on the virtual clock, where the server acts on each result as it arrives."""

from dataclasses import dataclass, replace

import numpy as np

from salf.aggregation import Aggregation, ClientResult, Contributors, ServerModel, Weights
from salf.methods import AsynchronousMethod
from salf.records import RoundRecord
from salf.simulation.async_jobs import ActiveJob, Dispatcher
from salf.simulation.evaluator import Evaluator
from salf.simulation.federation import SimulatedFederation
from salf.simulation.sampler import Sampler
from salf.simulation.server_state import ServerState


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


class AsynchronousRounds:
    """The rounds of an asynchronous method: equal stretches of the virtual clock.

    As many clients as a cohort has are at work at any time. When a job ends, the method acts on its result, and a
    client drawn among the idle ones begins at once with the current weights; without idle clients it is the same one.
    Events at the same time follow the clients' numbers. A client that never answers is given up after the time that
    its device model states, and replaced in the same way.

    Args:
        federation: The set-up.
        sampler: Draws the first cohort and all batches.
        evaluator: Tests the global model.
        method: The method.
    """

    def __init__(
        self, federation: SimulatedFederation, sampler: Sampler, evaluator: Evaluator, method: AsynchronousMethod
    ) -> None:
        self._federation, self._sampler, self._evaluator, self._method = federation, sampler, evaluator, method
        workload, self._layers = federation.workload, federation.layers
        self._steps = np.full((1, len(self._layers)), workload.local_steps, dtype=np.int64)
        self._seconds = method.round_seconds(federation.experiment.devices.typical_seconds(workload))
        initial = federation.model.state_dict()
        self._statistics = frozenset(
            name for layer in self._layers for name in layer.buffers if initial[name].is_floating_point()
        )

    def play(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """Play the round after `state`; return the state after it and its record."""
        end_s = state.time_s + self._seconds
        dispatcher, server, active_jobs = self._resume(state)
        begun = sum(active_job.began_s >= state.time_s for active_job in active_jobs)
        tally = _Tally(at_work=len(active_jobs), begun=begun)
        while dispatcher.next_s <= end_s:
            active_job, start = dispatcher.pop()
            server = self._receive(server, active_job, start, tally, dispatcher)
            dispatcher.send([dispatcher.successor(active_job)], active_job.ends_s, server)
            if active_job.ends_s < end_s:  # a client that begins as the round ends is at work in the next one
                tally.at_work += 1
                tally.begun += 1
        jobs = dispatcher.snapshot(server)
        after = replace(state, round=state.round + 1, time_s=end_s, weights=server.weights, active_jobs=jobs)
        return after, self._record(after, tally)

    def _resume(self, state: ServerState) -> tuple[Dispatcher, ServerModel, tuple[ActiveJob, ...]]:
        """Return dispatcher, server model and active jobs of a state; before the first round, start the first jobs."""
        experiment = self._federation.experiment
        dispatcher = Dispatcher(experiment.devices, self._federation.workload, experiment.data.clients, experiment.seed)
        active_jobs = state.active_jobs
        if active_jobs is None:
            server = ServerModel(state.weights)
            dispatcher.send(self._sampler.draw_cohort(1).clients.tolist(), state.time_s, server)
            return dispatcher, server, dispatcher.snapshot(server).under_way
        dispatcher.restore(active_jobs)
        return dispatcher, ServerModel(state.weights, active_jobs.version, active_jobs.buffer), active_jobs.under_way

    def _receive(
        self, server: ServerModel, active_job: ActiveJob, start: Weights, tally: _Tally, dispatcher: Dispatcher
    ) -> ServerModel:
        """Return the server's model after a job has ended, and count the job."""
        if not active_job.answers:
            tally.finished += self._finished_share(active_job, dispatcher)
            return server
        tally.finished += 1
        model = self._train(active_job, start, dispatcher)
        if model is None:
            tally.rejected += 1
            return server
        tally.applied += 1
        result = ClientResult(start, model, server.version - active_job.version)
        return self._method.receive(server, result, self._statistics)

    def _train(self, active_job: ActiveJob, start: Weights, dispatcher: Dispatcher) -> Weights | None:
        """Return the client's model after its job; None if it is refused."""
        cohort = dispatcher.cohort(active_job.client, active_job.job)
        tasks = self._sampler.tasks(cohort, self._steps, self._method.proximal)
        running = Aggregation(start, self._layers, Contributors())
        accepted = self._federation.engine.train_cohort(start, tasks, running)
        result = running.finish()
        return result.state if accepted.all() and not result.overflowed else None

    def _finished_share(self, active_job: ActiveJob, dispatcher: Dispatcher) -> float:
        """Return the share of its backward work that a client had finished when it was given up."""
        times, costs = dispatcher.times(active_job.client, active_job.job), self._federation.workload.backward
        return float((times.steps_ready_by(times.give_up_seconds) * costs).sum() / (self._steps * costs).sum())

    def _record(self, after: ServerState, tally: _Tally) -> RoundRecord:
        """Return the record of the round that led to a state."""
        accuracy, loss = self._evaluator.test(after.round, after.weights)
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
