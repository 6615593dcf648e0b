"""A whole round is what the formulas say, worked out client by client; and no client depends on another."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from simulator_cases import RESIDUAL, RULES, small_data, small_experiment, train_naively
from torch import Tensor, nn

from salf import models, seeds, simulate
from salf.aggregation.rules import Corrected
from salf.data import Dataset
from salf.devices import Cohort
from salf.methods import FedAvg, OverSelection, SynchronousMethod
from salf.records.rounds import RoundRecord
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
            conveyed = {layer.name: update.conveys(layer) for layer in layers}
            self.observed.setdefault(client, []).append(list(conveyed.values()))
            for layer in layers:
                if conveyed[layer.name]:
                    kept = {name: update.deltas[name].double() for name in layer.parameters}
                    self.memory.setdefault(client, {})[layer.name] = kept
        counts = []
        for index, layer in enumerate(layers):
            who = [client for client in clients if updates[client].conveys(layer)]
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
            rule.name if rule is not None else {"received": "contributors"}.get(method.normalise, "everyone")  # type: ignore[union-attr]
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
            nobody = float(np.prod([1 - chances[client][index] for client in clients]))
            correction = min(rule.max_correction, 1 / (1 - nobody))
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
        return [int((times.conveyed[0, :, layer] <= limit).sum()) for layer in range(len(self.simulation.layers))]

    def deadline(self) -> float:
        method = self.simulation.experiment.method
        if isinstance(method, FedAvg | OverSelection):
            return np.inf
        return method.deadline or self.simulation.experiment.devices.typical_seconds(self.simulation.workload)

    def chances(self, client: int, round: int) -> list[float]:
        experiment, layers = self.simulation.experiment, len(self.simulation.layers)
        if experiment.method.name == "salf" and experiment.method.reach_from == "known":
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
        """Whoever does not finish on time, of full depth or not."""
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


def test_a_clients_part_does_not_depend_on_who_else_is_asked() -> None:
    simulation = Simulation(small_experiment({**SETUPS["three steps"], "data.clients": 8}), dataset=DATA)
    experiment = simulation.experiment

    def parts(clients: list[int]) -> dict[int, tuple[Any, ...]]:
        cohort = Cohort(np.array(clients), 8, 3, experiment.seed)
        times = experiment.devices.times(simulation.workload, cohort)
        steps = times.steps_by(1.0)
        tasks = simulation.sampler.tasks(cohort, steps)
        return {
            task.client: (task.batches.tolist(), task.seed, task.num_examples, row.tolist(), late)
            for task, row, late in zip(tasks, steps, times.whole.tolist(), strict=True)
        }

    everyone = parts(list(range(8)))
    for some in ([5], [0, 7], [1, 2, 3, 6]):
        assert parts(some) == {client: everyone[client] for client in some}
    assert len({str(part[0]) for part in everyone.values()}) == 8


def test_every_local_step_draws_a_batch_of_the_clients_own_examples() -> None:
    settings = {"client.batch_size": 8, "client.local_steps": 3, "data.clients": 20, "data.size_sigma": 1.0}
    simulation = Simulation(small_experiment(settings), dataset=DATA)
    cohort = Cohort(np.arange(20), 20, 1, 5)
    sizes = simulation.federation.partition.sizes.tolist()
    assert min(sizes) < 8 < max(sizes)
    layers = len(simulation.layers)
    for task in simulation.sampler.tasks(cohort, np.ones((20, layers), dtype=np.int64)):
        own = sorted(simulation.federation.partition[task.client].tolist())
        batch = min(8, len(own))
        assert task.batches.shape == (3, batch)
        assert task.num_examples == len(own)
        assert set(task.batches.ravel().tolist()) <= set(own)
        if len(own) <= 8:  # each step sees all that the client has
            assert all(sorted(step.tolist()) == own for step in task.batches)
        elif len(own) >= 24:
            assert len(set(task.batches.ravel().tolist())) == 24


@pytest.mark.parametrize("asked", [None, 10])
@pytest.mark.parametrize("setup", SETUPS)
def test_drawing_for_several_rounds_at_once_changes_nothing(setup: str, asked: int | None) -> None:
    some = {} if asked is None else {"client.cohort": asked}
    simulation = Simulation(small_experiment({**SETUPS[setup], "data.clients": 30, **some}), dataset=DATA)
    sampler = simulation.sampler
    for turn in (40, 1, 2, sampler.rounds_ahead, sampler.rounds_ahead + 1):
        drawn, alone = sampler.draw_cohort(turn), sampler.draw_single_cohort(turn)
        assert (drawn.cohort_batch is None, alone.cohort_batch is None, drawn.round) == (False, True, turn)
        assert np.array_equal(drawn.clients, alone.clients)
        steps = np.ones((len(alone.clients), len(simulation.layers)), dtype=np.int64)
        assert np.array_equal(sampler.tasks(drawn, steps).batches, sampler.tasks(alone, steps).batches)
        found, expected = (sampler.times(simulation.workload, cohort) for cohort in (drawn, alone))
        assert np.array_equal(found.ready, expected.ready)
        assert np.array_equal(found.whole, expected.whole)


def test_cohorts_are_drawn_without_replacement_and_anew_each_round() -> None:
    simulation = Simulation(small_experiment({"data.clients": 30, "client.cohort": 10}), dataset=DATA)
    drawn = [simulation.sampler.draw_cohort(turn).clients.tolist() for turn in range(1, 200)]
    assert all(len(set(clients)) == 10 and clients == sorted(clients) for clients in drawn)
    times_asked = np.bincount(np.concatenate(drawn), minlength=30) / len(drawn)
    assert abs(times_asked - 1 / 3).max() < 0.12
    assert len({str(clients) for clients in drawn}) == len(drawn)


@pytest.mark.parametrize("devices", ["uniform", "exponential", "physical"])
def test_a_seed_determines_everything(devices: str) -> None:
    settings = {"devices.kind": devices, "data.clients": 8, "client.cohort": 5, "evaluate.every": 1}

    def play(seed: int) -> list[RoundRecord]:
        return list(simulate(small_experiment({**settings, "seed": seed}), dataset=DATA))

    assert play(1) == play(1)
    assert play(1) != play(2)
    assert [record.loss for record in play(1)] != [record.loss for record in play(2)]


def test_the_global_random_state_has_no_say_and_is_left_alone() -> None:
    experiment = small_experiment({"evaluate.every": 1})
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before, known = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    first = list(simulate(experiment, dataset=DATA))
    assert torch.equal(before, torch.get_rng_state())
    assert str(known) == str(np.random.get_state())  # noqa: NPY002
    torch.manual_seed(2)
    assert list(simulate(experiment, dataset=DATA)) == first


def test_simulate_plays_a_round_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[int] = []
    play = Simulation.play

    def counting(simulation: Simulation, state: ServerState) -> tuple[ServerState, RoundRecord]:
        played.append(state.round + 1)
        return play(simulation, state)

    monkeypatch.setattr(Simulation, "play", counting)
    records = simulate(small_experiment({"rounds": 10**6}), dataset=DATA)
    assert isinstance(records, Iterator)
    assert played == []
    assert [next(records).round, next(records).round] == [1, 2]
    assert played == [1, 2]


def test_the_test_data_is_looked_at_when_it_should_be() -> None:
    def evaluated(every: int) -> list[int]:
        records = simulate(small_experiment({"rounds": 5, "evaluate.every": every}), dataset=DATA)
        return [record.round for record in records if record.accuracy is not None and record.loss is not None]

    assert evaluated(1) == [1, 2, 3, 4, 5]
    assert evaluated(2) == [2, 4, 5]
    assert evaluated(10) == [5]


def test_a_state_of_the_past_can_be_played_again() -> None:
    simulation = Simulation(small_experiment({"method.rule": "memory", "evaluate.every": 1}), dataset=DATA)
    first, _ = simulation.play(simulation.initial_state())
    second, record = simulation.play(first)
    simulation.play(second)
    assert simulation.play(first)[1] == record
    assert (first.round, second.round) == (1, 2)


def test_something_is_learnt() -> None:
    easy = Dataset.from_tensors(DATA.inputs, DATA.labels, DATA.inputs, DATA.labels)
    records = list(simulate(small_experiment({"rounds": 40, "evaluate.every": 40}), dataset=easy))
    assert records[-1].accuracy is not None
    assert records[-1].accuracy > 0.9
