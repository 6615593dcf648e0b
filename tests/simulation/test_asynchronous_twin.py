"""The event loop against a twin that keeps one list of jobs and trains with autograd and nothing else."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from simulator_cases import RESIDUAL, play, small_data, small_experiment
from torch import Tensor, nn

from salf import seeds
from salf.devices import Cohort
from salf.methods import FedAsync, FedBuff
from salf.simulation.simulator import Simulation

State = dict[str, Tensor]


@dataclass
class Working:
    client: int
    number: int
    done_s: float
    answers: bool
    start: State
    moves_before: int


class Twin:
    """Plays `rounds` rounds of an asynchronous method in the most naive way."""

    def __init__(self, settings: dict[str, object]) -> None:
        self.simulation = Simulation(small_experiment(settings), dataset=small_data())
        self.experiment, self.federation = self.simulation.experiment, self.simulation.federation
        self.sampler = self.simulation.sampler
        self.weights: State = self.federation.initial_weights()
        self.moves, self.applied = 0, 0
        self.waiting: list[tuple[State, State, float]] = []
        self.numbers = dict.fromkeys(range(self.experiment.data.clients), 0)
        self.working: list[Working] = []

    def play(self) -> State:
        end = self.experiment.rounds * self.experiment.devices.typical_seconds(self.federation.workload)
        for client in self.sampler.draw_cohort(1).clients.tolist():
            self.begin(client, 0.0)
        while True:
            done = min(self.working, key=lambda workload: (workload.done_s, workload.client))
            if done.done_s > end * (1 + 1e-12):
                return self.weights
            self.working.remove(done)
            if done.answers:
                self.apply(done.start, self.train(done), self.moves - done.moves_before)
                self.applied += 1
            idle = sorted(set(self.numbers) - {workload.client for workload in self.working})
            draw = seeds.stream(self.experiment.seed, "successor", done.number, done.client)
            self.begin(idle[int(draw.integers(len(idle)))], done.done_s)

    def cohort(self, client: int) -> Cohort:
        return Cohort(np.array([client]), len(self.numbers), self.numbers[client], self.experiment.seed)

    def begin(self, client: int, now: float) -> None:
        self.numbers[client] += 1
        times = self.experiment.devices.times(self.federation.workload, self.cohort(client))
        takes = float(times.whole[0])
        answers = takes < np.inf
        done = now + (takes if answers else times.give_up_seconds)
        self.working.append(Working(client, self.numbers[client], done, answers, dict(self.weights), self.moves))

    def train(self, workload: Working) -> State:
        model, client = copy.deepcopy(self.federation.model).train(), self.experiment.client
        model.load_state_dict(workload.start)
        steps = np.full((1, len(self.simulation.layers)), client.local_steps)
        batches = self.sampler.tasks(self.cohort(workload.client), steps).task(0).batches
        data, proximal = self.federation.dataset, getattr(self.experiment.method, "rho", 0.0)
        for batch in batches:
            index = torch.from_numpy(batch)
            loss = nn.functional.cross_entropy(model(data.inputs[index]), data.labels[index])
            for name, parameter in model.named_parameters():
                loss = loss + proximal / 2 * (parameter - workload.start[name]).square().sum()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.sub_(client.lr * gradient)
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def apply(self, start: State, model: State, staleness: int) -> None:
        method: Any = self.experiment.method
        if isinstance(method, FedAsync):
            share = method.alpha / (1 + staleness) ** method.a
            self.weights = {
                name: (1 - share) * old + share * model[name] if old.is_floating_point() else max(old, model[name])
                for name, old in self.weights.items()
            }
            self.moves += 1
            return
        self.waiting.append((start, model, 1 / np.sqrt(1 + staleness)))
        if len(self.waiting) == method.buffer:
            self.weights = {name: self.averaged(name, method) for name in self.weights}
            self.waiting, self.moves = [], self.moves + 1

    def averaged(self, name: str, method: FedBuff) -> Tensor:
        old = self.weights[name]
        if not old.is_floating_point():
            return max(old, *(model[name] for _, model, _ in self.waiting))
        if "running" in name:
            total = sum(scale * model[name] for _, model, scale in self.waiting)
            return torch.as_tensor(total / sum(scale for _, _, scale in self.waiting))
        moved = sum(scale * (model[name] - start[name]) for start, model, scale in self.waiting)
        return torch.as_tensor(old + method.server_lr * moved / method.buffer)


@pytest.mark.parametrize(
    "method",
    [
        {"method.name": "fedasync"},
        {"method.name": "fedasync", "method.alpha": 0.9, "method.a": 1.5, "method.rho": 0.5},
        {"method.name": "fedbuff", "method.buffer": 4},
        {"method.name": "fedbuff", "method.buffer": 3, "method.server_lr": 0.6},
    ],
    ids=["fedasync", "fedasync-other", "fedbuff", "fedbuff-slow"],
)
@pytest.mark.parametrize(
    "settings",
    [
        {"devices.stragglers": 0.5, "devices.lowest_depth": 0, "devices.drawn": "round"},
        {"devices.kind": "physical", "devices.speed_sigma": 1.0, "client.local_steps": 2},
        {"devices.kind": "exponential", "client.cohort": 3},
        {"devices.kind": "physical", **RESIDUAL},
    ],
    ids=["ties", "steps", "cohort", "batchnorm"],
)
def test_the_loop_does_what_the_twin_does(method: dict[str, object], settings: dict[str, object]) -> None:
    both = {**method, **settings, "rounds": 4}
    twin = Twin(both)
    expected = twin.play()
    state, records = play(both)
    assert sum(record.contributors[0] for record in records) == twin.applied > 6
    assert state.active_jobs is not None
    assert state.active_jobs.version == twin.moves > 1
    initial = twin.federation.initial_weights()
    for name, tensor in expected.items():
        torch.testing.assert_close(state.weights[name], tensor, rtol=1e-5, atol=2e-6)
        assert not torch.equal(tensor, initial[name])
