"""The round loop: an experiment on the virtual clock, as a generator of states and records."""

import math
from collections.abc import Iterator
from dataclasses import replace

from pydantic import ValidationError
from torch import nn

from salf.data import Dataset
from salf.engines import Tasks
from salf.errors import InvalidSetting, check_type
from salf.experiment import Experiment
from salf.methods import Method, is_asynchronous, is_synchronous
from salf.participation import ObservedReach, StarvationMonitor
from salf.records import RoundRecord, TimeLine
from salf.simulation.asynchronous import AsynchronousRounds
from salf.simulation.federation import BuildEngine, SimulatedFederation
from salf.simulation.server_state import ServerState
from salf.simulation.submodels import SubmodelTraining
from salf.simulation.synchronous import SynchronousRounds, WholeModelTraining
from salf.simulation.typical_round import draw_timeline


class Simulation:
    """An experiment that is ready to run: one state and one record per round.

    `simulate` and `run_experiment` suffice for most purposes; use this to look at states, or to repeat a round.

    Args:
        experiment: What to simulate.
        method: A method that replaces the experiment's.
        model: A model that replaces the experiment's; it is copied, never changed.
        dataset: Data that replaces the experiment's.
        build_engine: Builds an engine that the experiment cannot choose by itself.

    Attributes:
        federation: The set-up: data, model, layers and engine.
        sampler: Draws cohorts, completion times and batches.
        evaluator: Tests the global model.
        experiment: The experiment, with `method`.
        layers: The layers of the model, input to output.
        workload: What a client computes in a round.

    Raises:
        InvalidSetting: Experiment, method, model and data do not fit together.
        UnsuitableModel: The model cannot be trained layer by layer.
        DataUnavailable: The data set cannot be loaded.

    >>> simulation = Simulation(Experiment.load("digits", **{"data.clients": 4}))
    >>> state, record = simulation.play(simulation.initial_state())
    >>> state.round, record.clients
    (1, 4)
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        method: Method | None = None,
        model: nn.Module | None = None,
        dataset: Dataset | None = None,
        build_engine: BuildEngine | None = None,
    ) -> None:
        experiment = with_method(experiment, method)
        self.federation = federation = SimulatedFederation(experiment, model, dataset, build_engine)
        self.experiment, self.layers, self.workload = experiment, federation.layers, federation.workload
        self.sampler, self.evaluator = federation.sampler, federation.evaluator
        self._rounds = self._build_rounds()

    def initial_state(self) -> ServerState:
        """Return the state before the first round."""
        return ServerState(0, 0.0, self.federation.initial_weights(), ObservedReach(len(self.layers)))

    def play(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """Play the round after a state, which stays as it is; return the state after it and its record."""
        with self.federation.suitable_threads():
            return self._rounds.play(state)

    def run(self, state: ServerState | None = None) -> Iterator[tuple[ServerState, RoundRecord]]:
        """Play the rest of the experiment's rounds, each when it is requested.

        Args:
            state: Where to continue; None for the initial state.

        Yields:
            The state after a round, and its record.

        Raises:
            InvalidSetting: A round has no end.

        Warns:
            StarvationWarning: A layer is sent by hardly any client, or by always the same ones.

        >>> simulation = Simulation(Experiment.load("digits", rounds=3, **{"data.clients": 4}))
        >>> [(state.round, record.time_s) for state, record in simulation.run()]
        [(1, 1.0), (2, 2.0), (3, 3.0)]
        """
        state, monitor = state or self.initial_state(), StarvationMonitor(self.layers.names)
        while state.round < self.experiment.rounds:
            state, record = self.play(state)
            if not math.isfinite(record.time_s):
                raise InvalidSetting(f"round {record.round} never ends; choose faster devices, or a shorter deadline")
            yield state, record
            monitor.warn(state.round, state.observed, record.clients)

    def timeline(self) -> TimeLine:
        """Return what each client does in a typical round; without a round for an asynchronous method."""
        if not isinstance(self._rounds, SynchronousRounds):
            return TimeLine(self.layers.names)
        return draw_timeline(self._rounds, self.initial_state(), self.layers.names, self.experiment.rounds)

    def tasks(self, state: ServerState) -> Tasks:
        """Return what the clients of the round after a state compute.

        Raises:
            InvalidSetting: The method is asynchronous.
        """
        if not isinstance(self._rounds, SynchronousRounds):
            name = self.experiment.method.name
            raise InvalidSetting(f"the method '{name}' is asynchronous and has no cohorts; choose a synchronous one")
        return self._rounds.tasks(self._rounds.plan(state))

    def _build_rounds(self) -> SynchronousRounds | AsynchronousRounds:
        method = self.experiment.method
        if is_asynchronous(method):
            return AsynchronousRounds(self.federation, method)
        if method.submodels is None:
            return SynchronousRounds(self.federation, method, WholeModelTraining(self.federation, method))
        return SynchronousRounds(self.federation, method, SubmodelTraining(self.federation, method, method.submodels))


def with_method(experiment: Experiment, method: Method | None) -> Experiment:
    """Return an experiment with a method in place of its own; None keeps the experiment as it is.

    Raises:
        InvalidSetting: An argument has a wrong type, or the method does not fit the other settings.

    >>> from salf.methods import FedAvg
    >>> with_method(Experiment(), FedAvg()).method.name
    'fedavg'
    """
    check_type("experiment", experiment, Experiment, "an Experiment, such as Experiment.load('digits')")
    if method is None:
        return experiment
    check_type("method", method, Method, "a method that is built already, such as Salf(deadline=2.0)")
    if not (is_synchronous(method) or is_asynchronous(method)):
        kind, bases = type(method).__name__, "SynchronousMethod or AsynchronousMethod"
        raise InvalidSetting(f"method is a {kind}, which is neither kind of method; use {bases} as base")
    try:
        return replace(experiment, method=method)
    except ValidationError as error:
        problems = (problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        raise InvalidSetting("; ".join(problems)) from error


def simulate(
    experiment: Experiment,
    *,
    method: Method | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
) -> Iterator[RoundRecord]:
    """Run an experiment on the virtual clock.

    Args:
        experiment: What to simulate.
        method: A method that replaces the experiment's.
        model: A model that replaces the experiment's; it is copied, never changed.
        dataset: Data that replaces the experiment's.

    Yields:
        One record per round, which is computed when it is requested.

    Raises:
        SalfError: Experiment, method, model and data do not fit together, or a round has no end.

    Warns:
        StarvationWarning: A layer is sent by hardly any client, or by always the same ones.

    >>> experiment = Experiment.load("digits", rounds=2, **{"data.clients": 4})
    >>> [record.round for record in simulate(experiment)]
    [1, 2]
    """
    for _, record in Simulation(experiment, method=method, model=model, dataset=dataset).run():
        yield record
