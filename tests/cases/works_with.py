"""One comparison for every optimizer, network and loop: a block that is cut, and a naive twin that stops there."""

from collections.abc import Callable, Iterable

import torch
from networks import Task, backward, buffers_of, parameters_of, same
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from virtual_time import Clock, take_time

from salf.client import Work, deadline
from salf.layers import Layers, find_layers
from salf.update import check_update

Make = Callable[[nn.Module], Optimizer]


def leaves_no_trace(model: nn.Module) -> bool:
    """Whether nothing of a block is left on a model, on torch's optimizers, or in place of torch's functions."""
    return (
        torch.autograd.backward.__module__ == "torch.autograd"
        and not (_global_optimizer_pre_hooks or _global_optimizer_post_hooks)
        and not any(module._forward_pre_hooks for module in model.modules())
    )


def step(task: Task, optimizer: Optimizer, number: int, unfinished: Iterable[str] = ()) -> None:
    """One step on the batch of that number, without the gradients of `unfinished` parameters."""
    optimizer.zero_grad()
    backward(task.loss(number))
    for name in unfinished:
        task.model.get_parameter(name).grad = None
    optimizer.step()


def cut(task: Task, make: Make, *, steps: int, depth: int, returns: bool, layers: Layers | None = None) -> Work:
    """Train a task in a block that is cut after `steps` steps and `depth` layers; compare it with a naive twin.

    Args:
        task: The network and its batches.
        make: Makes the optimizer.
        steps: The number of whole steps.
        depth: The number of layers that the next backward pass finishes.
        returns: Whether the loop ends itself.
        layers: The layers; by default those that the task's example shows.
    """
    layers = layers or find_layers(task.model, task.example)
    twin, clock = task.twin(), Clock()
    take_time(task.model, layers, clock.advance)
    optimizer, naive = make(task.model), make(twin.model)
    seconds = steps * (1 + len(layers)) + 1 + depth
    with deadline(task.model, None if returns else optimizer, seconds, layers=layers, clock=clock) as work:
        for number in work.batches(range(99)) if returns else range(99):
            step(task, optimizer, number)
    for number in range(steps):
        step(twin, naive, number)
    before = buffers_of(twin.model)
    unfinished = [name for layer in layers[: len(layers) - depth] for name in layer.parameters]
    if depth:
        step(twin, naive, steps, unfinished)
    assert work.interrupted
    assert list(work.layer_steps.values()) == [steps] * (len(layers) - depth) + [steps + 1] * depth
    assert same(parameters_of(task.model), parameters_of(twin.model))
    kept = {name for layer in layers[len(layers) - depth :] for name in layer.buffers} if depth else set()
    after = buffers_of(twin.model)
    assert same(buffers_of(task.model), {name: after[name] if name in kept else before[name] for name in before})
    check_update(work.update(num_examples=9), layers, task.model.state_dict())
    assert leaves_no_trace(task.model)
    return work
