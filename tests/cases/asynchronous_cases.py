"""Devices that take as long as they are told, and what the server is told of each arrival."""

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
    """Devices whose whole job takes client u `durations[u]`, of whom `silent` never answer in their first job.

    Those are given up after `gives_up` seconds, if at all; they finish the last layer's first step, and nothing else.
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
    """What a method was told: from which version the client began, and how stale that is."""

    version: int
    staleness: int


@dataclass
class Heard:
    """All that a method was told, in order."""

    arrivals: list[Received] = field(default_factory=list)


def listen(monkeypatch: pytest.MonkeyPatch, kind: type[FedAsync | FedBuff]) -> Heard:
    """Write down what the methods of a kind are told."""
    heard, receive = Heard(), kind.receive

    def listening(
        self: FedAsync | FedBuff, server: ServerModel, arrival: ClientResult, statistics: Collection[str]
    ) -> ServerModel:
        heard.arrivals.append(Received(server.version - arrival.staleness, arrival.staleness))
        return receive(self, server, arrival, statistics)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "receive", listening)
    return heard


def scripted(
    durations: tuple[float, ...],
    settings: Mapping[str, object],
    *,
    silent: tuple[int, ...] = (),
    gives_up: float | None = None,
    dataset: Dataset | None = None,
) -> Simulation:
    """A small experiment, of one client per duration."""
    experiment = small_experiment({"data.clients": len(durations), **settings})
    devices = Scripted(durations=durations, silent=silent, gives_up=gives_up)
    return Simulation(replace(experiment, devices=devices), dataset=dataset or small_data())
