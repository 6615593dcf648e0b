"""Wherever backpropagation is interrupted, what was finished is what a whole backward pass would have made of it."""

import copy
from collections.abc import Callable

import pytest
import torch
from networks import TASKS, backward, buffers_of, parameters_of, same, train
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from virtual_time import Clock, take_time

from salf.client.deadline_block import deadline
from salf.layers.find import Layers, find_layers
from salf.update import check_update

Make = Callable[[nn.Module], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda model: Adam(model.parameters(), lr=0.01, weight_decay=0.01),
    "adamw": lambda model: AdamW(model.parameters(), lr=0.01, weight_decay=0.1),
    "rmsprop": lambda model: RMSprop(model.parameters(), lr=0.01, momentum=0.5, weight_decay=0.01),
}
NETWORKS = ("cnn", "residual", "transformer")
DEPTHS = [
    (name, depth)
    for name in NETWORKS
    for depth in range(len(find_layers(TASKS[name]().model, TASKS[name]().example)) + 1)
]
every_depth = pytest.mark.parametrize(("name", "depth"), DEPTHS)


class Recorder(SGD):
    """Plain SGD that keeps the gradients of its last step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.1)
        self.named = dict(model.named_parameters())
        self.gradients: dict[str, Tensor] = {}

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.gradients = {name: value.grad.clone() for name, value in self.named.items() if value.grad is not None}
        super().step()


def last(layers: Layers, depth: int) -> set[str]:
    return {name for layer in layers[len(layers) - depth :] for name in layer.parameters}


def time_for(layers: Layers, steps: int, depth: int) -> float:
    """A forward pass takes one second, and so does each layer of a backward pass."""
    return steps * (1 + len(layers)) + 1 + depth


def test_the_networks_have_several_layers() -> None:
    assert {name: sum(name == other for other, _ in DEPTHS) - 1 for name in NETWORKS} == {
        "cnn": 4,
        "residual": 12,
        "transformer": 16,
    }


@every_depth
def test_the_gradients_sent_are_those_of_the_full_backward_pass(name: str, depth: int) -> None:
    task = TASKS[name]()
    layers, twin, clock = find_layers(task.model, task.example), task.twin(), Clock()
    backward(twin.loss())
    full = {name: value.grad for name, value in twin.model.named_parameters() if value.grad is not None}
    optimizer = Recorder(task.model)
    take_time(task.model, layers, clock.advance)
    with deadline(task.model, optimizer, time_for(layers, 0, depth), layers=layers, clock=clock) as work:
        train(task, optimizer)
    assert work.interrupted
    assert work.depth == depth
    assert optimizer.gradients.keys() == last(layers, depth)
    for parameter, gradient in optimizer.gradients.items():
        assert torch.equal(gradient, full[parameter]), parameter


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@every_depth
def test_the_last_step_is_one_over_the_completed_layers_alone(name: str, depth: int, make: Make) -> None:
    task = TASKS[name]()
    layers, clock, optimizer = find_layers(task.model, task.example), Clock(), make(task.model)
    train(task, optimizer, steps=2)
    twin = task.twin()
    naive = make(twin.model)
    naive.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    initial = parameters_of(task.model)

    take_time(task.model, layers, clock.advance)
    with deadline(task.model, optimizer, time_for(layers, 1, depth), layers=layers, clock=clock) as work:
        train(task, optimizer, first=2)

    train(twin, naive, steps=1, first=2)
    whole, buffers = parameters_of(twin.model), buffers_of(twin.model)
    naive.zero_grad()
    backward(twin.loss(3))
    reached = last(layers, depth)
    for parameter, value in twin.model.named_parameters():
        if parameter not in reached:
            value.grad = None
    naive.step()

    local = parameters_of(task.model)
    assert same(local, parameters_of(twin.model))
    assert all(torch.equal(local[name], whole[name]) for name in local.keys() - reached)
    torch.testing.assert_close(optimizer.state_dict(), naive.state_dict(), rtol=0, atol=0)
    sent = {name for layer in layers[len(layers) - depth :] for name in layer.buffers}
    after = buffers_of(twin.model)
    assert same(buffers_of(task.model), {n: after[n] if n in sent else buffers[n] for n in buffers})

    assert work.steps == (2 if depth == len(layers) else 1)
    assert list(work.layer_steps.values()) == [1] * (len(layers) - depth) + [2] * depth
    update = work.update(num_examples=7)
    check_update(update, layers, task.model.state_dict())
    assert same(dict(update.deltas), {name: local[name] - initial[name] for name in initial})


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_that_were_not_reached_do_not_move_at_all(name: str, make: Make) -> None:
    task = TASKS[name]()
    layers, clock, optimizer = find_layers(task.model, task.example), Clock(), make(task.model)
    train(task, optimizer, steps=2)
    initial, buffers = parameters_of(task.model), buffers_of(task.model)
    take_time(task.model, layers, clock.advance)
    with deadline(task.model, optimizer, time_for(layers, 0, 2), layers=layers, clock=clock) as work:
        train(task, optimizer)
    reached, local = last(layers, 2), parameters_of(task.model)
    assert {name for name in local if not torch.equal(local[name], initial[name])} == reached
    after = buffers_of(task.model)
    assert all(torch.equal(after[name], buffers[name]) for layer in layers[:-2] for name in layer.buffers)
    assert work.steps == 0
    assert work.update(1).deltas.keys() == reached
