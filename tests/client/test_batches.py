"""A training function that ends its own loop: it returns as usual, and its own code runs for the interrupted step."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from networks import Task, mlp_task, parameters_of, same
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset
from virtual_time import Clock, take_time

from salf.client.deadline_block import deadline
from salf.layers.find import find_layers
from salf.update import check_update

PASS = 4  # seconds: one for the forward pass and one for each of three layers


def timed_task() -> tuple[Task, Clock]:
    task, clock = mlp_task(), Clock()
    take_time(task.model, find_layers(task.model), clock.advance)
    return task, clock


def batches_of(task: Task, count: int = 12) -> list[tuple[Tensor, Tensor]]:
    return [task.batches[number % len(task.batches)] for number in range(count)]


def train(model: nn.Module, loader: Any, group: int = 1, log: list[float] | None = None) -> float:
    """The shape of Flower's quickstart, with clipping, groups of passes and a log of gradient norms."""
    optimizer, total = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1), 0.0
    for number, (images, labels) in enumerate(loader, 1):
        loss = nn.functional.cross_entropy(model(images), labels) / group
        loss.backward()  # type: ignore[no-untyped-call]
        if number % group == 0:
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            if log is not None:
                log += [norm.item(), *(parameter.grad.norm().item() for parameter in model.parameters())]  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()
        total += loss.item()
    return total / len(loader)


def naive(task: Task, steps: int, depth: int) -> dict[str, Tensor]:
    """The weights after `steps` whole steps of `train`, and one over the last `depth` layers."""
    optimizer = SGD(task.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(steps + (depth > 0)):
        images, labels = batches_of(task)[step]
        optimizer.zero_grad()
        nn.functional.cross_entropy(task.model(images), labels).backward()  # type: ignore[no-untyped-call]
        if step == steps:
            for layer in find_layers(task.model)[: 3 - depth]:
                for name in layer.parameters:
                    task.model.get_parameter(name).grad = None
        nn.utils.clip_grad_norm_(task.model.parameters(), 0.01)
        optimizer.step()
    return parameters_of(task.model)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_function_returns_and_its_clipping_runs_on_the_finished_layers(steps: int, depth: int) -> None:
    task, clock = timed_task()
    log: list[float] = []
    with deadline(task.model, seconds=steps * PASS + 1 + depth, clock=clock) as work:
        loss = train(task.model, work.batches(batches_of(task)), log=log)
    assert loss > 0
    assert work.interrupted
    assert (work.steps, list(work.layer_steps.values())) == (steps, [steps] * (3 - depth) + [steps + 1] * depth)
    assert same(parameters_of(task.model), naive(mlp_task(), steps, depth))
    # The loop sees zeros where a gradient is unfinished, and nothing stays of them.
    assert steps > depth == 0 or log[-6:].count(0.0) == 2 * (3 - depth)
    assert all(parameter.grad is None for parameter in task.model.parameters())
    check_update(work.update(9), find_layers(task.model), task.model.state_dict())


def test_a_loop_that_ends_in_time_is_left_alone() -> None:
    (task, clock), twin = timed_task(), mlp_task()
    with deadline(task.model, seconds=12 * PASS, clock=clock) as work:
        loss = train(task.model, work.batches(batches_of(task)))
    assert loss == train(twin.model, batches_of(twin))
    assert same(parameters_of(task.model), parameters_of(twin.model))
    assert (work.interrupted, work.steps, work.seconds) == (False, 12, 12 * PASS)


def test_between_two_batches_the_loop_just_ends() -> None:
    task, clock = timed_task()
    with deadline(task.model, seconds=math.inf, clock=clock) as work:  # now the times are known
        train(task.model, work.batches(batches_of(task, 2)))
    twin = task.twin()
    fetched: list[int] = []

    def loading() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(batches_of(task)):
            fetched.append(number)
            yield batch

    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return loading()

        def __len__(self) -> int:
            return 12

    with deadline(task.model, seconds=2 * PASS + 1.5, clock=clock) as work:
        train(task.model, work.batches(Loader()))
    assert (work.interrupted, work.steps, work.depth, work.seconds) == (True, 2, 3, 2 * PASS)
    assert fetched == [0, 1]
    assert same(parameters_of(task.model), naive(twin, 2, 0))


@pytest.mark.parametrize("given", [True, False], ids=["given", "seen"])
@pytest.mark.parametrize(("seconds", "reached"), [(7 * PASS, 3), (7 * PASS + 3, 4)])
def test_passes_of_an_unfinished_group_are_stepped_by_the_block(given: bool, seconds: float, reached: int) -> None:
    task, clock = timed_task()
    made: list[Optimizer] = []

    def loop(loader: Iterable[tuple[Tensor, Tensor]], optimizer: Optimizer | None, group: int = 4) -> str:
        optimizer = optimizer or SGD(task.model.parameters(), lr=0.1)
        made.append(optimizer)
        for number, (images, labels) in enumerate(loader, 1):
            (nn.functional.cross_entropy(task.model(images), labels) / group).backward()  # type: ignore[no-untyped-call]
            if number % group == 0:
                optimizer.step()
                optimizer.zero_grad()
        return "returned"

    outside = SGD(task.model.parameters(), lr=0.1) if given else None
    with deadline(task.model, outside, seconds, clock=clock) as work:
        assert loop(work.batches(batches_of(task)), outside) == "returned"
    assert work.layer_passes == {"fc1": 7, "fc2": 4 + reached, "fc3": 4 + reached}
    twin = mlp_task()
    gradients: dict[str, Tensor] = {}
    for number, (images, labels) in enumerate(batches_of(twin)[: 4 + reached], 1):
        loss = nn.functional.cross_entropy(twin.model(images), labels)
        for (name, parameter), gradient in zip(
            twin.model.named_parameters(), torch.autograd.grad(loss, [*twin.model.parameters()]), strict=True
        ):
            if number <= 7 or not name.startswith("fc1"):
                gradients[name] = gradients.get(name, torch.zeros_like(parameter)) + gradient
            parameter.grad = gradient
        if number in (4, 4 + reached):
            for name, parameter in twin.model.named_parameters():
                count = 4 if number == 4 else 3 if name.startswith("fc1") else reached
                parameter.data -= 0.1 * gradients.pop(name) / count
    for name, parameter in task.model.named_parameters():
        torch.testing.assert_close(parameter, twin.model.get_parameter(name), rtol=1e-5, atol=1e-7)


def test_a_group_without_a_known_optimizer_is_lost_with_a_warning() -> None:
    task, clock = timed_task()
    block = deadline(task.model, seconds=2 * PASS + 3, clock=clock, accumulate=4)
    with pytest.warns(UserWarning, match="3 backward .* no optimizer has stepped yet; pass the opt"), block as work:
        train(task.model, work.batches(batches_of(task)), group=4)
    assert work.depth == 0


def test_an_optimizer_may_be_named_while_the_block_runs() -> None:
    task, clock = timed_task()
    block = deadline(task.model, seconds=2 * PASS + 3, clock=clock, accumulate=4)
    with block as work:
        block.optimizer = SGD(task.model.parameters(), lr=0.1)
        train(task.model, work.batches(batches_of(task)), group=4)
    assert work.layer_passes == {"fc1": 2, "fc2": 3, "fc3": 3}


def test_a_loop_may_ask_whether_the_time_is_up() -> None:
    task, clock = timed_task()
    optimizer, images = SGD(task.model.parameters(), lr=0.1), task.batches[0][0]
    with deadline(task.model, optimizer, 3 * PASS, clock=clock) as work:
        while not work.time_is_up:
            optimizer.zero_grad()
            task.model(images).sum().backward()
            optimizer.step()
    assert (work.steps, work.interrupted) == (3, True)
    assert work.time_is_up


def test_a_loop_that_never_ends_is_left() -> None:
    task, clock = timed_task()
    with deadline(task.model, seconds=2 * PASS, clock=clock) as work:
        while True:
            train(task.model, work.batches(batches_of(task)))
    assert (work.steps, work.interrupted) == (2, True)


def test_after_its_end_the_function_may_evaluate_the_model() -> None:
    task, clock = timed_task()
    with deadline(task.model, seconds=2, clock=clock) as work:
        train(task.model, work.batches(batches_of(task)))
        scores = task.model(task.batches[0][0])  # also without torch.no_grad()
    assert scores.shape[0] == len(task.batches[0][0])
    assert work.layer_steps == {"fc1": 0, "fc2": 0, "fc3": 1}


def test_with_a_scaler_a_pass_that_reached_nothing_is_no_error() -> None:
    for seconds in (0.5, 2.5):
        task, clock = timed_task()
        scaler, optimizer = torch.amp.GradScaler("cpu"), SGD(task.model.parameters(), lr=0.1, momentum=0.9)
        before = parameters_of(task.model)
        with deadline(task.model, seconds=seconds, clock=clock) as work:
            for images, labels in work.batches(batches_of(task)):
                optimizer.zero_grad()
                scaler.scale(nn.functional.cross_entropy(task.model(images), labels)).backward()  # type: ignore[no-untyped-call]
                scaler.step(optimizer)
                scaler.update()
        after = parameters_of(task.model)
        assert work.depth == sum(not torch.equal(before[f"fc{n}.bias"], after[f"fc{n}.bias"]) for n in (1, 2, 3))
        assert work.depth == (2 if seconds > 1 else 0)


def test_the_loaders_attributes_remain() -> None:
    loader = DataLoader(TensorDataset(torch.ones(6, 2)), batch_size=2)
    with deadline(nn.Linear(2, 1), seconds=1.0) as work:
        batches: Any = work.batches(loader)
        assert (len(batches), batches.batch_size, len(batches.dataset)) == (3, 2, 6)
        assert len([*batches]) == 3
        with pytest.raises(TypeError):
            len(work.batches(itertools.count()))
    assert len([*batches]) == 3  # the block is over


@pytest.mark.parametrize("action", [lambda model: model.half(), lambda model: model.double()])
def test_the_function_may_convert_the_model(action: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Linear(2, 1)
    with deadline(model, seconds=60.0) as work:
        action(model)
        optimizer = SGD(model.parameters(), lr=0.1)
        for batch in work.batches([torch.ones(4, 2)] * 2):
            model(batch.to(model.weight.dtype)).sum().backward()
            optimizer.step()
    assert work.update(4).deltas["weight"].dtype == model.weight.dtype
