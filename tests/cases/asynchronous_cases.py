"""Devices with given durations, and a log of the results that a method receives."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pytest
from pydantic.dataclasses import dataclass as validated
from simulator_cases import small_data, small_experiment

from salf.aggregation.staleness import ClientResult, ServerModel
from salf.data import Dataset
from salf.devices import Cohort, CompletionTimes, UniformDepthDevices, Workload
from salf.methods import FedAsync, FedBuff
from salf.simulation.simulator import Simulation

NEVER = math.inf


@validated(frozen=True, kw_only=True)
class Scripted(UniformDepthDevices):
    """Devices with which client u takes `durations[u]` seconds for a job; `silent` clients never answer the first one.

    The server gives those up after `gives_up` seconds, or never. They finish the last layer of the first step.
    """

    durations: tuple[float, ...]
    silent: tuple[int, ...] = ()
    gives_up: float | None = None

    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        layers, steps = workload.costs.num_layers, workload.local_steps
        whole = np.array([self.durations[client] for client in cohort.clients])
        ready = np.broadcast_to(whole[:, None, None], (len(whole), steps, layers)).copy()
        mute = np.isin(cohort.clients, self.silent) & (cohort.round == 1)
        ready[mute], whole[mute] = NEVER, NEVER
        ready[mute, 0, -1] = 1.0
        return CompletionTimes(ready, ready, whole, NEVER if self.gives_up is None else self.gives_up)


class Received(NamedTuple):
    """A result as the method received it: the version from which the client began, and its staleness."""

    version: int
    staleness: int


@dataclass
class Log:
    """All results that a method received, in order."""

    results: list[Received] = field(default_factory=list)


def log_results(monkeypatch: pytest.MonkeyPatch, kind: type[FedAsync | FedBuff]) -> Log:
    """Log what the methods of a class receive."""
    log, receive = Log(), kind.receive

    def logging(
        self: FedAsync | FedBuff, server: ServerModel, result: ClientResult, statistics: Collection[str]
    ) -> ServerModel:
        log.results.append(Received(server.version - result.staleness, result.staleness))
        return receive(self, server, result, statistics)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "receive", logging)
    return log


def scripted(
    durations: tuple[float, ...],
    settings: Mapping[str, object],
    *,
    silent: tuple[int, ...] = (),
    gives_up: float | None = None,
    dataset: Dataset | None = None,
) -> Simulation:
    """Return a small simulation with one client per duration."""
    experiment = small_experiment({"data.clients": len(durations), **settings})
    devices = Scripted(durations=durations, silent=silent, gives_up=gives_up)
    return Simulation(replace(experiment, devices=devices), dataset=dataset or small_data())
