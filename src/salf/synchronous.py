"""Rounds in which everyone is asked at once and the server aggregates once, on a virtual clock."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from salf.aggregation import Aggregated, Aggregation
from salf.devices import Cohort, Floats, Times
from salf.engines import Tasks
from salf.federation import Federation
from salf.methods import Schedule, Situation, SynchronousMethod
from salf.records import RoundRecord
from salf.server import OptimizerState
from salf.speeds import ObservedSpeeds
from salf.state import ServerState


@dataclass(frozen=True)
class Plan:
    """Who is asked in a round, what counts of what they do, and what is known of their speeds afterwards."""

    cohort: Cohort
    schedule: Schedule
    speeds: ObservedSpeeds


class SynchronousRounds:
    """The rounds of a synchronous method; `play` takes a state one round further."""

    def __init__(self, federation: Federation, method: SynchronousMethod) -> None:
        self._federation, self._method = federation, method
        self._jobs = method.jobs(federation.job)
        self._costs = np.stack([job.backward for job in self._jobs])
        self._sizes = np.asarray(federation.job.costs.layer_bytes, dtype=np.int64)

    def play(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """Play the round after `state`; return the state after it and its record."""
        plan = self.plan(state)
        cohort, schedule = plan.cohort, plan.schedule
        result, accepted = self._train(state, plan)
        weights, optimizer = self._move(state, result)
        conveyed = schedule.steps > 0
        after = ServerState(
            cohort.round,
            state.time_s + schedule.seconds,
            weights,
            state.observed.observe(cohort.clients, conveyed & accepted[:, None]),
            result.memory,
            optimizer,
            plan.speeds,
        )
        accuracy, loss = self._federation.evaluate(after.round, weights)
        record = RoundRecord(
            round=after.round,
            time_s=after.time_s,
            deadline_s=schedule.deadline_seconds,
            clients=len(cohort.clients),
            contributors=result.contributors,
            depths=tuple(np.bincount(conveyed.sum(axis=1), minlength=len(self._sizes) + 1).tolist()),
            work_kept=work_kept(schedule, self._costs_of(schedule), accepted),
            bytes_down=int(self._sizes.sum()) * len(cohort.clients),
            bytes_up=int((conveyed @ self._sizes).sum()),
            rejected=int((~accepted).sum()),
            accuracy=accuracy,
            loss=loss,
            engine=self._federation.engine.name,
        )
        return after, record

    def _costs_of(self, schedule: Schedule) -> Floats:
        """Return the operations of a step of each layer in the job that each client was given."""
        return self._costs[0] if schedule.jobs is None else np.asarray(self._costs[schedule.jobs], dtype=np.float64)

    def plan(self, state: ServerState) -> Plan:
        """Draw who is asked in the round after `state`, and how far they get."""
        devices = self._federation.experiment.devices
        usual = devices.typical_seconds(self._federation.job)
        cohort = self._federation.draw_cohort(state.round + 1)
        effort = self._method.effort(state.speeds.of(cohort.clients), usual)
        if effort is not None:
            cohort = replace(cohort, effort=effort)
        options = [devices.times(job, cohort) for job in self._jobs]
        schedule = self._method.in_round(cohort.round, usual).schedule(options, usual)
        return Plan(cohort, schedule, self._speeds(state, cohort, options))

    def _speeds(self, state: ServerState, cohort: Cohort, options: Sequence[Times]) -> ObservedSpeeds:
        """Return what is known of the clients' speeds after a round: each tells at what pace it worked."""
        if cohort.effort is None:
            return state.speeds
        return state.speeds.observe(cohort.clients, cohort.effort / options[0].whole)

    def tasks(self, plan: Plan) -> Tasks:
        """Return what the clients of a round compute."""
        return self._federation.tasks(plan.cohort, plan.schedule.steps, self._method.proximal)

    def _train(self, state: ServerState, plan: Plan) -> tuple[Aggregated, npt.NDArray[np.bool_]]:
        """Let the cohort train, and aggregate what it conveys; return the result and whose updates were accepted."""
        federation, cohort = self._federation, plan.cohort
        devices, deadline = federation.experiment.devices, plan.schedule.deadline_seconds
        running = Aggregation(
            state.weights,
            federation.layers,
            federation.rule,
            reach=self._method.reach(Situation(devices, federation.job, cohort, deadline, state.observed)),
            clients=cohort.clients.tolist(),
            memory=state.memory,
            momentum=federation.experiment.client.momentum,
        )
        accepted = federation.engine.contribute(state.weights, self.tasks(plan), running)
        return running.finish(len(cohort.clients)), accepted

    def _move(self, state: ServerState, result: Aggregated) -> tuple[dict[str, Tensor], OptimizerState]:
        """Take the server's step towards the aggregate."""
        server, federation = self._federation.experiment.server, self._federation
        if server.averages:
            return result.state, state.optimizer
        enough = federation.rule.min_contributors
        moved = [
            name
            for layer, count in zip(federation.layers, result.contributors, strict=True)
            if count >= enough and layer.name not in result.overflowed
            for name in layer.parameters
        ]
        return server.step(state.weights, result.state, moved, state.optimizer, federation.layers.aliases)


def work_kept(schedule: Schedule, costs: Floats, accepted: npt.NDArray[np.bool_]) -> float | None:
    """Return the share of the finished backward work that entered the model; None where nothing was finished.

    `costs`, of shape (layers,) or (clients, layers), are the operations of a step of each layer, `accepted` says whose
    updates were.
    """
    finished = float((schedule.finished * costs).sum())
    return float((schedule.steps * costs)[accepted].sum()) / finished if finished else None
