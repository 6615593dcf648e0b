"""Federations to plan for."""

from salf.devices import Workload
from salf.experiment.experiment import Experiment
from salf.planning import ASSUMED, Fleet, Task, Timing
from salf.theory import Constants
from salf.values import LayerCosts


def forecast(experiment: Experiment, workload: Workload) -> Fleet:
    """The federation of an experiment."""
    clients = experiment.data.clients
    return Fleet(experiment.devices, workload, clients, experiment.client.cohort or clients, experiment.seed)


def task_of(fleet: Fleet, seconds: float = 100.0, steps: str = "adel", **changes: float) -> Task:
    """A learning problem of the assumed constants."""
    values = {**ASSUMED, **changes}
    error = values.pop("initial_error")
    return Task(Constants(num_clients=fleet.asked, **values), error, seconds, steps)


def fleet_of(devices: Timing, clients: int = 12, asked: int | None = None, local_steps: int = 1) -> Fleet:
    """Clients that train four layers of unequal cost."""
    costs = LayerCosts(7.0, (2.0, 3.0, 4.0, 5.0), (100, 200, 300, 400))
    return Fleet(devices, Workload(costs, local_steps), clients, asked or clients, seed=0)
