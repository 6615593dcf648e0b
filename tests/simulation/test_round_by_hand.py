"""A whole round against the formulas, worked out client by client in plain loops."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from simulator_cases import RESIDUAL, RULES, small_data, small_experiment, train_naively
from torch import Tensor, nn

from salf import models, seeds
from salf.aggregation.rules import Corrected
from salf.devices import Cohort
from salf.methods import FedAvg, OverSelection, Salf, SynchronousMethod
from salf.simulation.server_state import ServerState
from salf.simulation.simulator import Simulation
from salf.update import Update

Doubles = dict[str, Tensor]
DATA = small_data(examples=150)
UNEVEN = {"data.size_sigma": 1.0, "client.lr": 0.3}
SETUPS: dict[str, dict[str, Any]] = {
    "one step": UNEVEN,
    "three steps": {**UNEVEN, "client.local_steps": 3, "client.momentum": 0.9},
    "batchnorm": {**RESIDUAL, "client.local_steps": 2, "data.clients": 5},
    "physical": {**UNEVEN, "client.local_steps": 2, "devices.kind": "physical", "devices.speed_sigma": 1.0},
    "cohort": {**UNEVEN, "data.clients": 9, "client.cohort": 4},
}


@dataclass
class Naive:
    """The server and its clients in plain loops and double precision; `observed` and `memory` are per client."""

    simulation: Simulation
    model: nn.Module
    observed: dict[int, list[list[bool]]] = field(default_factory=dict)
    memory: dict[int, dict[str, Doubles]] = field(default_factory=dict)

    def round(self, state: ServerState, clients: list[int]) -> tuple[Doubles, list[int]]:
        """Return the weights after the round that follows `state`, and how many conveyed each layer."""
        layers = self.simulation.layers
        updates = {client: self.train(state, client) for client in clients}
        chances = {client: self.chances(client, state.round + 1) for client in clients}
        new = {name: tensor.double() for name, tensor in state.weights.items()}
        for client, update in updates.items():
            conveyed = {layer.name: update.includes(layer) for layer in layers}
            self.observed.setdefault(client, []).append(list(conveyed.values()))
            for layer in layers:
                if conveyed[layer.name]:
                    kept = {name: update.deltas[name].double() for name in layer.parameters}
                    self.memory.setdefault(client, {})[layer.name] = kept
        counts = []
        for index, layer in enumerate(layers):
            who = [client for client in clients if updates[client].includes(layer)]
            counts.append(len(who))
            if not who:
                continue
            for name in layer.parameters:
                new[name] = new[name] + self.move(name, index, clients, who, updates, chances)
            for name in layer.buffers:
                values = [updates[client].buffers[name].double() for client in who]
                total = sum(self.weight(client) for client in who)
                mean = sum(self.weight(client) * value for client, value in zip(who, values, strict=True)) / total
                new[name] = torch.as_tensor(mean) if state.weights[name].is_floating_point() else max(values)
        return new, counts

    def move(
        self,
        name: str,
        index: int,
        clients: list[int],
        who: list[int],
        updates: Mapping[int, Update],
        chances: Mapping[int, list[float]],
    ) -> Tensor:
        """How far a parameter moves: the table of rules."""
        method = self.simulation.experiment.method
        rule = getattr(method, "rule", None)
        kind = {"fedavg": "contributors"}.get(method.name) or (
            rule.name
            if rule is not None
            else {"received": "contributors"}.get(getattr(method, "normalise", ""), "everyone")
        )
        a, deltas = self.weight, {client: updates[client].deltas[name].double() for client in who}
        everyone = sum(a(client) for client in clients)
        total = torch.zeros_like(next(iter(deltas.values())))
        if kind == "memory":
            layer = self.simulation.layers[index].name
            remembering = [client for client in sorted(self.memory) if layer in self.memory[client]]
            for client in remembering:
                total += a(client) * self.memory[client][layer][name]
            return total / sum(a(client) for client in remembering)
        for client in who:
            total += a(client) * deltas[client] / (chances[client][index] if kind == "inverse-probability" else 1.0)
        if kind == "contributors":
            return total / sum(a(client) for client in who)
        if kind == "corrected":
            assert isinstance(rule, Corrected)
            empty = float(np.prod([1 - chances[client][index] for client in clients]))
            correction = min(rule.max_correction, 1 / (1 - empty))
            return total * correction * len(clients) / len(who) / everyone
        return total / everyone

    def weight(self, client: int) -> float:
        method = self.simulation.experiment.method
        assert isinstance(method, SynchronousMethod)
        return float(len(self.simulation.federation.partition[client])) if method.weight_by_examples else 1.0

    def train(self, state: ServerState, client: int) -> Update:
        experiment, layers = self.simulation.experiment, self.simulation.layers
        own = self.simulation.federation.partition[client]
        batch, local_steps = min(experiment.client.batch_size, len(own)), experiment.client.local_steps
        uniforms = seeds.uniforms(experiment.seed, "batch", state.round + 1, [client], batch * local_steps)
        drawn = seeds.permuted(uniforms, [len(own)])
        batches = [(DATA.inputs[own[places]], DATA.labels[own[places]]) for places in drawn.reshape(local_steps, batch)]
        seed = seeds.integer(experiment.seed, "model", state.round + 1, client)
        steps = self.steps(client, state.round + 1)
        return train_naively(self.model, layers, state.weights, steps, batches, experiment.client, seed)

    def steps(self, client: int, round: int) -> list[int]:
        experiment, workload = self.simulation.experiment, self.simulation.workload
        times = experiment.devices.times(workload, self.alone(client, round))
        limit = self.deadline()
        if experiment.method.name == "drop" and times.whole[0] > limit:
            return [0] * len(self.simulation.layers)
        if experiment.method.name == "fedavg" and times.whole[0] == np.inf:
            return [0] * len(self.simulation.layers)
        return [int((times.sent[0, :, layer] <= limit).sum()) for layer in range(len(self.simulation.layers))]

    def deadline(self) -> float:
        method = self.simulation.experiment.method
        if isinstance(method, FedAvg | OverSelection):
            return np.inf
        return getattr(method, "deadline", None) or self.simulation.experiment.devices.typical_seconds(
            self.simulation.workload
        )

    def chances(self, client: int, round: int) -> list[float]:
        experiment, layers = self.simulation.experiment, len(self.simulation.layers)
        if isinstance(experiment.method, Salf) and experiment.method.reach_from == "known":
            assert experiment.devices.kind == "uniform"
            slow = self.is_straggler(client, round)
            return [(index + 1) / layers if slow else 1.0 for index in range(layers)]
        rows = list(itertools.chain(*self.observed.values()))
        own = self.observed.get(client, [])
        overall = [(sum(row[index] for row in rows) + 1) / (len(rows) + 1) for index in range(layers)]
        enough = len(own) >= max(1, min(round - 1, 10))  # rounds, to be certain of a client that was not always asked
        never_missed = [enough and all(row[index] for row in own) for index in range(layers)]
        smoothed = [(sum(row[index] for row in own) + 2 * q) / (len(own) + 2) for index, q in enumerate(overall)]
        return [1.0 if certain else chance for certain, chance in zip(never_missed, smoothed, strict=True)]

    def is_straggler(self, client: int, round: int) -> bool:
        """Return whether a client misses the deadline."""
        times = self.simulation.experiment.devices.times(self.simulation.workload, self.alone(client, round))
        return bool(times.whole[0] > self.deadline())

    def alone(self, client: int, round: int) -> Cohort:
        experiment = self.simulation.experiment
        return Cohort(np.array([client]), experiment.data.clients, round, experiment.seed)


def assert_rounds_by_hand(settings: dict[str, Any], rounds: int = 3) -> None:
    simulation = Simulation(small_experiment(settings), dataset=DATA)
    experiment = simulation.experiment
    model = models.build(experiment.model, DATA.input_shape, DATA.num_classes, experiment.seed)
    naive = Naive(simulation, model)
    state = simulation.initial_state()
    asked = experiment.client.cohort
    for _ in range(rounds):
        clients = list(range(experiment.data.clients))
        if asked is not None:
            draw = seeds.stream(experiment.seed, "cohort", state.round + 1)
            clients = sorted(draw.choice(experiment.data.clients, asked, replace=False).tolist())
        expected, counts = naive.round(state, clients)
        state, record = simulation.play(state)
        assert list(record.contributors) == counts
        assert record.clients == len(clients)
        for name, tensor in state.weights.items():
            assert torch.allclose(tensor.double(), expected[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("rule", RULES)
def test_salf_with_every_rule(setup: str, rule: str) -> None:
    by_examples = setup in ("one step", "cohort")
    assert_rounds_by_hand({**SETUPS[setup], "method.rule": rule, "method.weight_by_examples": by_examples})


@pytest.mark.parametrize("rule", ["corrected", "inverse-probability"])
def test_salf_with_the_true_chances(rule: str) -> None:
    known = {"method.rule": rule, "method.reach_from": "known", "devices.stragglers": 1.0, "devices.seconds": 0.1}
    assert_rounds_by_hand({**UNEVEN, **known})
    assert_rounds_by_hand({**UNEVEN, **known, "devices.stragglers": 0.5})


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("normalise", ["received", "everyone"])
def test_dropping_stragglers(setup: str, normalise: str) -> None:
    slow = {} if setup == "physical" else {"devices.stragglers": 0.5}
    drop = {"method.name": "drop", "method.normalise": normalise, "method.weight_by_examples": setup == "three steps"}
    assert_rounds_by_hand({**SETUPS[setup], **slow, **drop})


@pytest.mark.parametrize("setup", SETUPS)
def test_federated_averaging(setup: str) -> None:
    lowest = {} if setup == "physical" else {"devices.lowest_depth": 0}
    assert_rounds_by_hand({**SETUPS[setup], **lowest, "method.name": "fedavg"})
