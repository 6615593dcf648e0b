"""An experiment played round by round on the virtual clock."""

from collections.abc import Callable, Iterator

from torch import nn

from salf import data
from salf.engines import Engine, Tasks, Training
from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.methods import is_asynchronous
from salf.participation import ObservedReach, StarvationMonitor
from salf.records import RoundRecord, TimeLine
from salf.simulation.asynchronous import AsynchronousRounds
from salf.simulation.federation import SimulatedFederation
from salf.simulation.server_state import ServerState
from salf.simulation.submodels import SubmodelTraining
from salf.simulation.synchronous import SynchronousRounds
from salf.simulation.typical_round import draw_timeline


class Simulation:
    """An experiment made ready to run: `initial_state` is where it starts, `play` takes a state one round further.

    The data set and the model are those that the experiment names, unless they are given; a given model is copied,
    never changed. `build_engine` makes an engine that the experiment cannot choose by itself.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        model: nn.Module | None = None,
        dataset: data.Dataset | None = None,
        build_engine: Callable[[Training], Engine] | None = None,
    ) -> None:
        self.federation = SimulatedFederation(experiment, model=model, dataset=dataset, build_engine=build_engine)
        self.experiment, self.layers, self.workload = experiment, self.federation.layers, self.federation.workload
        self._rounds = _rounds(self.federation)

    def initial_state(self) -> ServerState:
        """Return the state before the first round."""
        return ServerState(0, 0.0, self.federation.initial_weights(), ObservedReach(len(self.layers)))

    def play(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """Play the round after `state`; return the state after it and its record."""
        with self.federation.suitable_threads():
            return self._rounds.play(state)

    def timeline(self) -> TimeLine:
        """Return who does what when in a typical round; without a round where nobody is asked together."""
        if not isinstance(self._rounds, SynchronousRounds):
            return TimeLine(self.layers.names)
        return draw_timeline(self._rounds, self.initial_state(), self.layers.names, self.experiment.rounds)

    def tasks(self, state: ServerState) -> Tasks:
        """Return what the clients of the round after `state` compute, by a synchronous method."""
        if not isinstance(self._rounds, SynchronousRounds):
            raise InvalidSetting(f"by '{self.experiment.method.name}' nobody is asked together; choose another method")
        return self._rounds.tasks(self._rounds.plan(state))


def _rounds(federation: SimulatedFederation) -> SynchronousRounds | AsynchronousRounds:
    """Return the loop that the experiment's method plays in."""
    method = federation.experiment.method
    if is_asynchronous(method):
        return AsynchronousRounds(federation, method)
    training = None if method.submodels is None else SubmodelTraining(federation, method, method.submodels)
    return SynchronousRounds(federation, method, training)


def simulate(
    experiment: Experiment, *, model: nn.Module | None = None, dataset: data.Dataset | None = None
) -> Iterator[RoundRecord]:
    """Run an experiment on the virtual clock, yielding one record per round.

    `model` and `dataset` stand in for those that the experiment names; the model is copied, never changed. Warns with
    `salf.starvation.StarvationWarning` of layers that hardly anybody conveys, or always the same clients.

    >>> experiment = Experiment.load("digits", rounds=2, **{"data.clients": 4})
    >>> [record.round for record in simulate(experiment)]
    [1, 2]
    """
    simulation = Simulation(experiment, model=model, dataset=dataset)
    state, watch = simulation.initial_state(), StarvationMonitor(simulation.layers.names)
    while state.round < experiment.rounds:
        state, record = simulation.play(state)
        watch.warn(state.round, state.observed, record.clients)
        yield record
