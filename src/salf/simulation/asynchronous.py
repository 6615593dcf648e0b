"""An event loop on the virtual clock: the server acts whenever a client is done, and nobody waits for anybody."""

from dataclasses import dataclass, replace

import numpy as np

from salf.aggregation import Aggregation, ClientResult, Contributors, ServerModel, Weights
from salf.methods import AsynchronousMethod
from salf.records import RoundRecord
from salf.simulation.async_jobs import ActiveJob, Dispatcher
from salf.simulation.federation import SimulatedFederation
from salf.simulation.server_state import ServerState


@dataclass
class _Tally:
    """What happens in a round.

    Counted are the jobs at work, those of them that begin, and those that end: applied, refused or given up. `finished`
    is the work that was finished, in whole jobs.
    """

    at_work: int
    begun: int
    applied: int = 0
    rejected: int = 0
    finished: float = 0.0


class AsynchronousRounds:
    """The rounds of an asynchronous method: equal stretches of the virtual clock; `play` takes a state one further.

    `client.cohort` clients (or all) are at work at any time. When one of them is done, the method makes what it likes
    of its model, and a client drawn among those who are idle (where all take part, the same one) begins at once from
    the current weights. Events at the same time come in the order of the clients' numbers. A client that never answers
    is given up after the time that its device model states, and replaced likewise.
    """

    def __init__(self, federation: SimulatedFederation, method: AsynchronousMethod) -> None:
        self._federation, self._method = federation, method
        workload, self._layers = federation.workload, federation.layers
        self._steps = np.full((1, len(self._layers)), workload.local_steps, dtype=np.int64)
        self._seconds = method.deadline or federation.experiment.devices.typical_seconds(workload)
        initial = federation.initial_weights()
        self._statistics = frozenset(
            name for layer in self._layers for name in layer.buffers if initial[name].is_floating_point()
        )

    def play(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """Play the round after `state`; return the state after it and its record."""
        end_s = state.time_s + self._seconds
        dispatcher, server, active_jobs = self._board(state)
        begun = sum(active_job.began_s >= state.time_s for active_job in active_jobs)
        tally = _Tally(at_work=len(active_jobs), begun=begun)
        while dispatcher.next_s <= end_s:
            active_job, start = dispatcher.pop()
            server = self._receive(server, active_job, start, tally, dispatcher)
            dispatcher.send([dispatcher.successor(active_job)], active_job.ends_s, server)
            if active_job.ends_s < end_s:  # who begins as the round ends is at work in the next
                tally.at_work += 1
                tally.begun += 1
        after = replace(
            state,
            round=state.round + 1,
            time_s=end_s,
            weights=server.weights,
            active_jobs=dispatcher.snapshot(server),
        )
        return after, self._record(after, tally)

    def _board(self, state: ServerState) -> tuple[Dispatcher, ServerModel, tuple[ActiveJob, ...]]:
        """Return the clients at work, sending them off if nobody is yet, and the server's model."""
        experiment = self._federation.experiment
        dispatcher = Dispatcher(experiment.devices, self._federation.workload, experiment.data.clients, experiment.seed)
        active_jobs = state.active_jobs
        if active_jobs is None:
            server = ServerModel(state.weights)
            dispatcher.send(self._federation.draw_cohort(1).clients.tolist(), state.time_s, server)
            return dispatcher, server, dispatcher.snapshot(server).under_way
        dispatcher.restore(active_jobs)
        return dispatcher, ServerModel(state.weights, active_jobs.version, active_jobs.buffer), active_jobs.under_way

    def _receive(
        self, server: ServerModel, active_job: ActiveJob, start: Weights, tally: _Tally, dispatcher: Dispatcher
    ) -> ServerModel:
        """Return the server's model after a flight has ended."""
        if not active_job.answers:
            tally.finished += self._share_finished(active_job, dispatcher)
            return server
        tally.finished += 1
        model = self._train(active_job, start, dispatcher)
        if model is None:
            tally.rejected += 1
            return server
        tally.applied += 1
        return self._method.receive(
            server, ClientResult(start, model, server.version - active_job.version), self._statistics
        )

    def _train(self, active_job: ActiveJob, start: Weights, dispatcher: Dispatcher) -> Weights | None:
        """Return the client's model after its job; None if it is not to be used."""
        tasks = self._federation.tasks(
            dispatcher.cohort(active_job.client, active_job.workload), self._steps, self._method.proximal
        )
        running = Aggregation(start, self._layers, Contributors())
        accepted = self._federation.engine.train_cohort(start, tasks, running)
        result = running.finish()
        return result.state if accepted.all() and not result.overflowed else None

    def _share_finished(self, active_job: ActiveJob, dispatcher: Dispatcher) -> float:
        """Return how much of its job a client had finished when it was given up."""
        times, costs = dispatcher.times(active_job.client, active_job.workload), self._federation.workload.backward
        return float((times.steps_ready_by(times.give_up_seconds) * costs).sum() / (self._steps * costs).sum())

    def _record(self, after: ServerState, tally: _Tally) -> RoundRecord:
        accuracy, loss = self._federation.evaluate(after.round, after.weights)
        size, conveyed = sum(self._federation.workload.costs.layer_bytes), tally.applied + tally.rejected
        return RoundRecord(
            round=after.round,
            time_s=after.time_s,
            deadline_s=None,
            clients=tally.at_work,
            contributors=(tally.applied,) * len(self._layers),
            depths=(tally.at_work - conveyed, *[0] * (len(self._layers) - 1), conveyed),
            work_kept=tally.applied / tally.finished if tally.finished else None,
            bytes_down=size * tally.begun,
            bytes_up=size * conveyed,
            rejected=tally.rejected,
            accuracy=accuracy,
            loss=loss,
            engine=self._federation.engine.name,
        )
