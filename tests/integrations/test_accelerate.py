"""Loops that Accelerate prepares, under a deadline, with the real library."""

import doctest
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from networks import Task, mlp_task, parameters_of, same
from torch import nn
from torch.optim import SGD
from virtual_time import Clock, take_time

from salf.errors import InvalidSetting
from salf.layers import find_layers

pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install 'salf[accelerate]'")
from accelerate import Accelerator

from salf.integrations import accelerate

pytestmark = pytest.mark.slow
PASS = 4  # seconds: one for the forward pass and one for each of three layers


def test_its_examples_run() -> None:
    assert doctest.testmod(accelerate, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


def train(accelerator: Accelerator, task: Task, model: nn.Module, optimizer: Any, numbers: Iterable[int]) -> None:
    for number in numbers:
        with accelerator.accumulate(model):
            inputs, labels = task.batches[number % len(task.batches)]
            accelerator.backward(nn.functional.cross_entropy(model(inputs), labels))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 100.0)
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize(("group", "seconds", "passes"), [(1, 2 * PASS + 3, [2, 3, 3]), (4, 6 * PASS + 3, [6, 7, 7])])
def test_a_prepared_loop_keeps_finished_layers_and_passes(
    group: int, seconds: float, passes: list[int], returns: bool
) -> None:
    task, twin, clock = mlp_task(), mlp_task(), Clock()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=group)
    take_time(task.model, find_layers(task.model), clock.advance)
    model, optimizer = accelerator.prepare(task.model, SGD(task.model.parameters(), lr=0.1))
    with accelerate.deadline(accelerator, model, optimizer, seconds, clock=clock) as work:
        train(accelerator, task, model, optimizer, work.batches(range(99)) if returns else range(99))
    assert list(work.layer_passes.values()) == passes
    # The naive twin steps by hand over the mean of what has reached each layer.
    naive, done = SGD(twin.model.parameters(), lr=0.1), passes[0] // group * group
    for begin in range(0, passes[2], group):
        sums = {name: torch.zeros_like(value) for name, value in twin.model.named_parameters()}
        for number in range(begin, min(begin + group, passes[2])):
            inputs, labels = twin.batches[number % len(twin.batches)]
            loss = nn.functional.cross_entropy(twin.model(inputs), labels)
            gradients = torch.autograd.grad(loss, [*twin.model.parameters()])
            for name, gradient in zip(sums, gradients, strict=True):
                sums[name] += gradient * (number < passes[0] or not name.startswith("fc1"))
        for name, parameter in twin.model.named_parameters():
            reached = (passes[0] if name.startswith("fc1") else passes[2]) - begin
            parameter.grad = sums[name] / min(group, reached) if reached > 0 else None
        naive.step()
    assert done <= passes[0]
    for name, value in parameters_of(task.model).items():
        torch.testing.assert_close(value, twin.model.get_parameter(name), rtol=1e-5, atol=1e-6)


def test_a_scaler_of_the_accelerator_is_used() -> None:
    task, clock = mlp_task(), Clock()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    take_time(task.model, find_layers(task.model), clock.advance)
    model, optimizer = accelerator.prepare(task.model, SGD(task.model.parameters(), lr=0.1))
    optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = parameters_of(task.model)
    with accelerate.deadline(accelerator, model, optimizer, 2 * PASS + 1.5, clock=clock) as work:
        for number in range(4):
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(task.batches[number][0]), task.batches[number][1])
                accelerator.backward(optimizer.scaler.scale(loss))
    assert work.layer_passes == {"fc1": 2, "fc2": 2, "fc3": 2}
    change = max(float((value - before[name]).abs().max()) for name, value in parameters_of(task.model).items())
    assert 0 < change < 1  # scaled gradients would move the weights a thousand times as far


def test_what_is_no_accelerator_is_refused() -> None:
    task = mlp_task()
    with pytest.raises(InvalidSetting, match="accelerator is of type Mlp; give an accelerate"):
        accelerate.deadline(task.model, task.model, None, 1.0)
    assert same(parameters_of(task.model), parameters_of(mlp_task().model))
