"""The work in plain PyTorch loops, without a simulator."""

import copy
from collections.abc import Callable

import torch
from workload import LEARNING_RATE, Outcome, Workload, local_step

PACKAGES = ("torch",)


def reused(workload: Workload, lap: Callable[[], None]) -> Outcome:
    """Train all clients in one model, reset to the global weights for each."""
    model = workload.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for number in range(workload.rounds):
        sums = {name: torch.zeros_like(value) for name, value in weights.items()}
        for client in range(workload.clients):
            model.load_state_dict(weights)
            local_step(model, optimizer, workload.batch(number, client))
            for name, value in model.state_dict().items():
                sums[name] += value
        weights = {name: total / workload.clients for name, total in sums.items()}
        lap()
    model.load_state_dict(weights)
    return workload.test(model)


def copied(workload: Workload, lap: Callable[[], None]) -> Outcome:
    """Train each client in a copy of the global model, then average the copies."""
    model = workload.network()
    for number in range(workload.rounds):
        states = []
        for client in range(workload.clients):
            local = copy.deepcopy(model)
            local_step(local, torch.optim.SGD(local.parameters(), lr=LEARNING_RATE), workload.batch(number, client))
            states.append(local.state_dict())
        model.load_state_dict({name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]})
        lap()
    return workload.test(model)
