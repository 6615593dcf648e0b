"""Rounds in which everyone is asked at once and the server aggregates once, on a virtual clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from salf.aggregation import Aggregated, Aggregation, OptimizerState
from salf.devices import Cohort, CompletionTimes, Workload
from salf.engines import Tasks, train_round
from salf.methods import RoundContext, RoundSchedule, SynchronousMethod
from salf.participation import Chances, ObservedSpeeds
from salf.records import RoundRecord
from salf.simulation.federation import SimulatedFederation
from salf.simulation.server_state import ServerState
from salf.values import Floats


@dataclass(frozen=True)
class RoundPlan:
    """Who is asked in a round, and what counts of what they do.

    `options` says how long each of the method's jobs would take them, `speeds` what is known of them afterwards.
    """

    cohort: Cohort
    options: tuple[CompletionTimes, ...]
    schedule: RoundSchedule
    speeds: ObservedSpeeds


@dataclass(frozen=True)
class Trained:
    """What a round's clients make of the global model: the aggregate, and whose updates were accepted, (clients,).

    `reach`, of shape (clients, layers), are the chances that the rule was told, None where it was told none. `held`
    says, by parameter, which of its elements somebody conveyed, where that may be less than all.
    """

    result: Aggregated
    accepted: npt.NDArray[np.bool_]
    reach: Floats | None = None
    held: Mapping[str, Tensor] = field(default_factory=dict)


class CohortTraining(Protocol):
    """How the clients of a round train; `workloads` are those among which the method chooses for each."""

    workloads: tuple[Workload, ...]

    def train(self, state: ServerState, plan: RoundPlan) -> Trained:
        """Let the cohort train, and aggregate what it conveys."""
        ...

    def complete(self, round: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the global state after a round with what else it takes to test it."""
        ...


class WholeModels:
    """Every client trains the global model, or the last layers of it."""

    def __init__(self, federation: SimulatedFederation, method: SynchronousMethod) -> None:
        self._federation, self._method, self._rule = federation, method, method.aggregation_rule
        self.workloads = method.workloads(federation.workload)

    def train(self, state: ServerState, plan: RoundPlan) -> Trained:
        """Let the cohort train, and aggregate what it conveys."""
        federation, cohort = self._federation, plan.cohort
        devices, deadline = federation.experiment.devices, plan.schedule.deadline_seconds
        reach = self._method.reach(RoundContext(devices, federation.workload, cohort, deadline, state.observed))
        begin = partial(
            Aggregation,
            state.weights,
            federation.layers,
            self._rule,
            reach=reach,
            clients=cohort.clients.tolist(),
            memory=state.memory,
            momentum=federation.experiment.client.momentum,
        )
        tasks = federation.tasks(cohort, plan.schedule.steps, self._method.proximal)
        result, accepted = train_round(federation.engine, state.weights, tasks, begin)
        return Trained(result, accepted, reach)

    def complete(self, round: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state as it is."""
        return weights


class SynchronousRounds:
    """The rounds of a synchronous method; `play` takes a state one round further.

    `training` is how the clients train: `WholeModels` unless it is given.
    """

    def __init__(
        self, federation: SimulatedFederation, method: SynchronousMethod, training: CohortTraining | None = None
    ) -> None:
        self._federation, self._method = federation, method.prepare(federation.run_context())
        self._least = self._method.aggregation_rule.min_contributors
        self._training = training or WholeModels(federation, method)
        self._jobs = self._training.workloads
        self._costs = np.stack([workload.backward for workload in self._jobs])
        self._sizes = np.array([workload.costs.layer_bytes for workload in self._jobs], dtype=np.int64)

    def play(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """Play the round after `state`; return the state after it and its record."""
        plan = self.plan(state)
        trained = self._training.train(state, plan)
        weights, optimizer = self._move(state, trained)
        conveyed = (plan.schedule.steps > 0) & trained.accepted[:, None]
        after = ServerState(
            plan.cohort.round,
            state.time_s + plan.schedule.seconds,
            self._training.complete(plan.cohort.round, weights),
            state.observed.observe(plan.cohort.clients, conveyed),
            trained.result.memory,
            optimizer,
            plan.speeds,
        )
        return after, self._record(after, plan, trained, self._chances(state, plan, trained))

    def _chances(self, state: ServerState, plan: RoundPlan, trained: Trained) -> Chances:
        """Return what was thought of the clients' chances before the round."""
        if trained.reach is not None:
            return Chances.of(trained.reach, self._least, trained.result.empty_probability)
        return Chances.of(state.observed.probability(plan.cohort.clients), self._least)

    def _record(self, after: ServerState, plan: RoundPlan, trained: Trained, chances: Chances) -> RoundRecord:
        """Return the record of the round that led to a state."""
        schedule, conveyed = plan.schedule, plan.schedule.steps > 0
        given = np.zeros(len(conveyed), dtype=np.int64) if schedule.workloads is None else schedule.workloads
        accuracy, loss = self._federation.evaluate(after.round, after.weights)
        return RoundRecord(
            round=after.round,
            time_s=after.time_s,
            deadline_s=schedule.deadline_seconds,
            clients=len(conveyed),
            contributors=trained.result.contributors,
            depths=tuple(np.bincount(conveyed.sum(axis=1), minlength=conveyed.shape[1] + 1).tolist()),
            work_kept=work_kept(schedule, plan.cohort.computing(self._costs[given]), trained.accepted),
            bytes_down=int(self._sizes[given].sum()),
            bytes_up=int((conveyed * self._sizes[given]).sum()),
            rejected=int((~trained.accepted).sum()),
            accuracy=accuracy,
            loss=loss,
            engine=self._federation.engine.name,
            empty=chances.empty,
            reach=chances.mean,
            least_reach=chances.least,
        )

    def plan(self, state: ServerState) -> RoundPlan:
        """Draw who is asked in the round after `state`, and how far they get."""
        devices = self._federation.experiment.devices
        usual = devices.typical_seconds(self._federation.workload)
        cohort = self._federation.draw_cohort(state.round + 1)
        batch_fraction = self._method.batch_fraction(state.speeds.of(cohort.clients), usual)
        if batch_fraction is not None:
            cohort = replace(cohort, batch_fraction=self._federation.in_examples(cohort.clients, batch_fraction))
        options = tuple(self._federation.times(workload, cohort) for workload in self._jobs)
        schedule = self._method.in_round(cohort.round, usual, state.observed).schedule(options, usual)
        return RoundPlan(cohort, options, schedule, self._speeds(state, cohort, options))

    def _speeds(self, state: ServerState, cohort: Cohort, options: Sequence[CompletionTimes]) -> ObservedSpeeds:
        """Return what is known of the clients' speeds after a round: each tells at what pace it worked."""
        if cohort.batch_fraction is None:
            return state.speeds
        return state.speeds.observe(cohort.clients, cohort.batch_fraction / options[0].whole)

    def tasks(self, plan: RoundPlan) -> Tasks:
        """Return what the clients of a round compute."""
        return self._federation.tasks(plan.cohort, plan.schedule.steps, self._method.proximal)

    def _move(self, state: ServerState, trained: Trained) -> tuple[dict[str, Tensor], OptimizerState]:
        """Take the server's step towards the aggregate."""
        server, federation, result = self._federation.experiment.server, self._federation, trained.result
        if server.averages:
            return result.state, state.optimizer
        moved = [
            name
            for layer, count in zip(federation.layers, result.contributors, strict=True)
            if count >= self._least and layer.name not in result.overflowed
            for name in layer.parameters
        ]
        aliases = federation.layers.aliases
        return server.step(state.weights, result.state, moved, state.optimizer, aliases, trained.held)


def work_kept(schedule: RoundSchedule, costs: Floats, accepted: npt.NDArray[np.bool_]) -> float | None:
    """Return the share of the finished backward work that entered the model; None where nothing was finished.

    `costs`, of shape (layers,) or (clients, layers), are the operations of a step of each layer, `accepted` says whose
    updates were.
    """
    finished = float((schedule.finished * costs).sum())
    return float((schedule.steps * costs)[accepted].sum()) / finished if finished else None
