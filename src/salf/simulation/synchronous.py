"""Methods with rounds: the clients of a round train at the same time, and the server aggregates once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from salf.aggregation import Aggregated, Aggregation, OptimizerState
from salf.devices import Cohort, CompletionTimes, Workload
from salf.engines import Tasks, train_round
from salf.layers import Layers
from salf.methods import RoundContext, RoundSchedule, RunContext, SynchronousMethod
from salf.participation import Chances, ObservedSpeeds
from salf.records import RoundRecord
from salf.simulation.compatibility import check_schedule
from salf.simulation.federation import SimulatedFederation
from salf.simulation.server_state import ServerState
from salf.values import Floats


@dataclass(frozen=True)
class RoundPlan:
    """What is decided about a round before any client trains.

    Attributes:
        cohort: The clients of the round.
        options: When they would finish, for each of the method's workloads.
        schedule: How many steps of each layer count, and how long the round lasts.
        speeds: The clients' observed speeds after the round.
    """

    cohort: Cohort
    options: tuple[CompletionTimes, ...]
    schedule: RoundSchedule
    speeds: ObservedSpeeds


@dataclass(frozen=True)
class CohortUpdate:
    """The aggregated training of a round.

    Attributes:
        result: The aggregate.
        accepted: Whose updates were accepted, shape (clients,).
        reach: The chances π_{u,l} that the rule used, shape (clients, layers); None for a rule that uses none.
        held: Which elements of a parameter some client sent, by parameter; all of them where it is missing.
    """

    result: Aggregated
    accepted: npt.NDArray[np.bool_]
    reach: Floats | None = None
    held: Mapping[str, Tensor] = field(default_factory=dict)


class CohortTraining(Protocol):
    """How the clients of a round train; the method chooses one of `workloads` for each of them."""

    workloads: tuple[Workload, ...]

    def train(self, state: ServerState, plan: RoundPlan) -> CohortUpdate:
        """Train a cohort from the weights of a state, and aggregate what it sends."""
        ...


class WholeModelTraining:
    """Every client trains the global model, or the last layers of it.

    Args:
        federation: The set-up.
        method: The method, with its rule, its proximal term and the chances that it knows.
    """

    def __init__(self, federation: SimulatedFederation, method: SynchronousMethod) -> None:
        self._federation, self._method, self._rule = federation, method, method.aggregation_rule
        self.workloads = method.workloads(federation.workload)

    def train(self, state: ServerState, plan: RoundPlan) -> CohortUpdate:
        """Train a cohort from the weights of a state, and aggregate what it sends."""
        federation, cohort, experiment = self._federation, plan.cohort, self._federation.experiment
        devices, deadline = experiment.devices, plan.schedule.deadline_seconds
        reach = self._method.reach(RoundContext(devices, federation.workload, cohort, deadline, state.observed))
        clients, memory, momentum = cohort.clients.tolist(), state.memory, experiment.client.momentum
        layers, rule = federation.layers, self._rule
        begin = partial(
            Aggregation, state.weights, layers, rule, reach=reach, clients=clients, memory=memory, momentum=momentum
        )
        tasks = federation.sampler.tasks(cohort, plan.schedule.steps, self._method.proximal)
        result, accepted = train_round(federation.engine, state.weights, tasks, begin)
        return CohortUpdate(result, accepted, reach)


class SynchronousRounds:
    """The rounds of a synchronous method.

    Args:
        federation: The set-up.
        method: The method.
        training: How clients train.
    """

    def __init__(self, federation: SimulatedFederation, method: SynchronousMethod, training: CohortTraining) -> None:
        self._federation, self._sampler, self._training = federation, federation.sampler, training
        experiment, client, workload = federation.experiment, federation.experiment.client, federation.workload
        self._usual_seconds = usual = experiment.devices.typical_seconds(workload)
        speeds = self._sampler.mean_speeds()
        run = RunContext(experiment.rounds, workload, usual, client.batch_size, client.lr, speeds)
        self._method = method.prepare(run)
        self._least = self._method.aggregation_rule.min_contributors
        self._workloads = training.workloads
        self._costs = np.stack([workload.backward for workload in self._workloads])
        self._sizes = np.array([workload.costs.layer_bytes for workload in self._workloads], dtype=np.int64)

    def play(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """Play the round after `state`; return the state after it and its record."""
        plan = self.plan(state)
        cohort, schedule = plan.cohort, plan.schedule
        update = self._training.train(state, plan)
        weights, optimizer = self._step(state, update)
        weights = self._federation.evaluator.complete(cohort.round, weights)
        observed = state.observed.observe(cohort.clients, (schedule.steps > 0) & update.accepted[:, None])
        time_s = state.time_s + schedule.seconds
        after = ServerState(cohort.round, time_s, weights, observed, update.result.memory, optimizer, plan.speeds)
        return after, self._record(after, plan, update, self._chances(state, plan, update))

    def plan(self, state: ServerState) -> RoundPlan:
        """Draw the clients of the round after `state`, and decide how much of their work counts."""
        usual = self._usual_seconds
        cohort = self._sampler.draw_cohort(state.round + 1)
        batch_fraction = self._method.batch_fraction(state.speeds.of(cohort.clients), usual)
        if batch_fraction is not None:
            cohort = replace(cohort, batch_fraction=self._sampler.to_whole_examples(cohort.clients, batch_fraction))
        options = tuple(self._sampler.times(workload, cohort) for workload in self._workloads)
        schedule = self._method.in_round(cohort.round, usual, state.observed).schedule(options, usual)
        check_schedule(schedule, (len(cohort.clients), len(self._federation.layers)))
        speeds = state.speeds
        if cohort.batch_fraction is not None:  # these clients report how fast they worked
            speeds = speeds.observe(cohort.clients, cohort.batch_fraction / options[0].whole)
        return RoundPlan(cohort, options, schedule, speeds)

    def tasks(self, plan: RoundPlan) -> Tasks:
        """Return what the clients of a round compute."""
        return self._sampler.tasks(plan.cohort, plan.schedule.steps, self._method.proximal)

    def _step(self, state: ServerState, update: CohortUpdate) -> tuple[dict[str, Tensor], OptimizerState]:
        """Take the step of the server's optimizer towards the aggregate."""
        server, layers, result = self._federation.experiment.server, self._federation.layers, update.result
        if server.averages:
            return result.state, state.optimizer
        moved = list(moved_parameters(layers, result, self._least))
        return server.step(state.weights, result.state, moved, state.optimizer, layers.aliases, update.held)

    def _chances(self, state: ServerState, plan: RoundPlan, update: CohortUpdate) -> Chances:
        """Return the clients' chances as they were estimated before the round."""
        if update.reach is not None:
            return Chances.of(update.reach, self._least, update.result.empty_probability)
        return Chances.of(state.observed.probability(plan.cohort.clients), self._least)

    def _record(self, after: ServerState, plan: RoundPlan, update: CohortUpdate, chances: Chances) -> RoundRecord:
        """Return the record of the round that led to a state."""
        schedule, sent = plan.schedule, plan.schedule.steps > 0
        given = np.zeros(len(sent), dtype=np.int64) if schedule.workloads is None else schedule.workloads
        accuracy, loss = self._federation.evaluator.test(after.round, after.weights)
        return RoundRecord(
            round=after.round,
            time_s=after.time_s,
            deadline_s=schedule.deadline_seconds,
            clients=len(sent),
            contributors=update.result.contributors,
            depths=tuple(np.bincount(sent.sum(axis=1), minlength=sent.shape[1] + 1).tolist()),
            work_kept=work_kept(schedule, plan.cohort.computing(self._costs[given]), update.accepted),
            bytes_down=int(self._sizes[given].sum()),
            bytes_up=int((sent * self._sizes[given]).sum()),
            rejected=int((~update.accepted).sum()),
            accuracy=accuracy,
            loss=loss,
            engine=self._federation.engine.name,
            empty=chances.empty,
            reach=chances.mean,
            least_reach=chances.least,
        )


def moved_parameters(layers: Layers, result: Aggregated, least: int = 1) -> Iterator[str]:
    """Yield the names of the parameters that an aggregation has moved.

    Args:
        layers: The layers of the model.
        result: The aggregate.
        least: How many clients must have sent a layer.
    """
    for layer, count in zip(layers, result.contributors, strict=True):
        if count >= least and layer.name not in result.overflowed:
            yield from layer.parameters


def work_kept(schedule: RoundSchedule, costs: Floats, accepted: npt.NDArray[np.bool_]) -> float | None:
    """Return the share of the finished backward work that entered the model; None if none was finished.

    Args:
        schedule: Which steps the clients finished, and which of them count.
        costs: The operations of one step of each layer, shape (layers,) or (clients, layers).
        accepted: Whose updates were accepted, shape (clients,).

    >>> schedule = RoundSchedule(np.array([[0, 1], [1, 1]]), np.array([[1, 1], [1, 1]]), 1.0, 1.0)
    >>> work_kept(schedule, np.array([3.0, 1.0]), np.array([True, True]))
    0.625
    """
    finished = float((schedule.finished * costs).sum())
    return float((schedule.steps * costs)[accepted].sum()) / finished if finished else None
