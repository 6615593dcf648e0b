"""Several backward passes for one optimizer step, and steps that are left out."""

from collections.abc import Callable

import pytest
import torch
from networks import Task, backward, mlp_task, parameters_of, same
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from virtual_time import Clock, take_time

from salf.client.deadline_block import deadline
from salf.layers.find import find_layers

# With the network of three layers a pass takes 4 seconds: one for the forward pass and one for each layer.
PASS = 4


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def timed_task() -> tuple[Task, Clock]:
    task, clock = mlp_task(), Clock()
    take_time(task.model, find_layers(task.model), clock.advance)
    return task, clock


def accumulate(task: Task, optimizer: Optimizer, passes: int, steps: int = 100) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        for number in range(passes):
            backward(task.loss(step * passes + number))
        optimizer.step()


def expected(passes: int, steps: int, partial: int, depth: int) -> dict[str, Tensor]:
    """The weights after `steps` steps, and one over the last `depth` layers that got `partial` passes."""
    task = mlp_task()
    optimizer = sgd(task.model)
    accumulate(task, optimizer, passes, steps)
    optimizer.zero_grad()
    for number in range(partial):
        backward(task.loss(steps * passes + number))
    for layer in find_layers(task.model)[: 3 - depth]:
        for name in layer.parameters:
            task.model.get_parameter(name).grad = None
    optimizer.step()
    return parameters_of(task.model)


@pytest.mark.parametrize("known", [True, False], ids=["given", "learnt"])
@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_layer_counts_when_the_last_pass_has_reached_it(known: bool, passes: int, depth: int) -> None:
    task, clock = timed_task()
    optimizer = sgd(task.model)
    seconds = (2 * passes - 1) * PASS + 1 + depth
    with deadline(task.model, optimizer, seconds, clock=clock, accumulate=passes if known else None) as work:
        accumulate(task, optimizer, passes)
    assert (work.steps, work.seconds) == (1, seconds)
    assert list(work.layer_steps.values()) == [1] * (3 - depth) + [2] * depth
    assert same(parameters_of(task.model), expected(passes, 1, passes, depth))


@pytest.mark.parametrize("known", [True, False], ids=["given", "learnt"])
def test_passes_before_the_last_send_nothing(known: bool) -> None:
    task, clock = timed_task()
    optimizer = sgd(task.model)
    with deadline(task.model, optimizer, 2 * PASS + 3, clock=clock, accumulate=2 if known else None) as work:
        accumulate(task, optimizer, passes=2)
    assert (work.interrupted, work.seconds) == (True, 2 * PASS + 3)
    assert work.layer_steps == {"fc1": 1, "fc2": 1, "fc3": 1}
    assert same(parameters_of(task.model), expected(2, 1, 0, 0))


def test_in_the_first_step_too_if_their_number_was_given() -> None:
    task, clock = timed_task()
    optimizer = sgd(task.model)
    with deadline(task.model, optimizer, 3, clock=clock, accumulate=2) as work:
        accumulate(task, optimizer, passes=2)
    assert (work.interrupted, work.depth, work.seconds) == (True, 0, 3)


def test_what_one_block_has_learnt_the_next_one_knows() -> None:
    task, clock = timed_task()
    optimizer = sgd(task.model)
    with deadline(task.model, optimizer, 100, clock=clock):
        accumulate(task, optimizer, passes=2, steps=1)
    with deadline(task.model, optimizer, 3, clock=clock) as work:
        accumulate(task, optimizer, passes=2)
    assert (work.interrupted, work.depth) == (True, 0)
    with deadline(task.model, optimizer, PASS + 3, clock=clock) as work:
        accumulate(task, optimizer, passes=2)
    assert list(work.layer_steps.values()) == [0, 1, 1]


@pytest.mark.parametrize(("seconds", "passes"), [(3, 1), (PASS + 3, 2), (2 * PASS + 3, 3)])
def test_before_anything_is_known_the_passes_begun_are_what_counts(seconds: float, passes: int) -> None:
    task, clock = timed_task()
    optimizer = sgd(task.model)
    with deadline(task.model, optimizer, seconds, clock=clock) as work:
        accumulate(task, optimizer, passes=5)
    assert list(work.layer_steps.values()) == [0, 1, 1]
    assert same(parameters_of(task.model), expected(5, 0, passes, 2))


@pytest.mark.parametrize(("seconds", "layer_steps"), [(3 * PASS + 2, [1, 1, 2]), (3 * PASS + 1, [1, 1, 1])])
def test_more_passes_than_learnt_are_noticed(seconds: float, layer_steps: list[int]) -> None:
    task, clock = timed_task()
    optimizer = sgd(task.model)
    with deadline(task.model, optimizer, seconds, clock=clock) as work:
        accumulate(task, optimizer, passes=1, steps=1)
        accumulate(task, optimizer, passes=9)
    assert list(work.layer_steps.values()) == layer_steps


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("known", [None, 1])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_step_left_out_does_not_count(set_to_none: bool, known: int | None, depth: int) -> None:
    """As when a loss is not finite and the loop goes on with the next batch."""
    (task, clock), twin = timed_task(), mlp_task()
    optimizer, naive = sgd(task.model), sgd(twin.model)
    seconds = 2 * PASS + 1 + depth

    def loop(task: Task, optimizer: Optimizer, steps: int) -> None:
        for step in range(steps):
            optimizer.zero_grad(set_to_none=set_to_none)
            backward(task.loss(step))
            if step != 1:
                optimizer.step()

    with deadline(task.model, optimizer, seconds, clock=clock, accumulate=known) as work:
        loop(task, optimizer, 100)
    assert list(work.layer_steps.values()) == [1] * (3 - depth) + [2] * depth
    loop(twin, naive, 2)
    naive.zero_grad()
    backward(twin.loss(2))
    for layer in find_layers(twin.model)[: 3 - depth]:
        for name in layer.parameters:
            twin.model.get_parameter(name).grad = None
    naive.step()
    assert same(parameters_of(task.model), parameters_of(twin.model))


def test_a_step_left_out_among_several_passes_does_not_count() -> None:
    task, clock = timed_task()
    optimizer = sgd(task.model)
    with deadline(task.model, optimizer, 3 * PASS + 2, clock=clock, accumulate=2) as work:
        for number in range(100):
            if number % 2 == 0:
                optimizer.zero_grad(set_to_none=False)
            backward(task.loss(number))
            if number % 2 and number > 1:
                optimizer.step()
    assert list(work.layer_steps.values()) == [0, 0, 1]
    task, clock = timed_task()
    optimizer = sgd(task.model)
    with deadline(task.model, optimizer, 2 * PASS + 2, clock=clock, accumulate=2) as work:
        for number in range(100):
            if number % 2 == 0:
                optimizer.zero_grad(set_to_none=False)
            backward(task.loss(number))
    assert work.depth == 0


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.stem(x))
        return self.left(x), self.right(x)


def two_losses(model: nn.Module, optimizer: Optimizer, steps: int = 100) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        left, right = model(torch.ones(2, 6))
        backward(left.square().sum(), retain_graph=True)
        backward(right.sum())
        optimizer.step()


def same_loss_twice(model: nn.Module, optimizer: Optimizer, steps: int = 100) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.cat(model(torch.ones(2, 6))).square().sum()
        backward(loss, retain_graph=True)
        backward(loss)
        optimizer.step()


@pytest.mark.parametrize(
    ("loop", "seconds", "reached"),
    [
        # 5 seconds a step: 1 for the forward pass, then left, stem, right, stem
        (two_losses, 5 + 2, {"left"}),
        (two_losses, 5 + 3, {"left"}),
        (two_losses, 5 + 4, {"left", "right"}),
        (two_losses, 5 + 5, {"left", "right", "stem"}),
        # 7 seconds a step: 1 for the forward pass, then right, left, stem, right, left, stem
        (same_loss_twice, 7 + 3, set()),
        (same_loss_twice, 7 + 5, {"right"}),
        (same_loss_twice, 7 + 6, {"left", "right"}),
        (same_loss_twice, 7 + 7, {"left", "right", "stem"}),
    ],
)
def test_several_backward_passes_through_one_graph(
    loop: Callable[..., None], seconds: float, reached: set[str]
) -> None:
    (model, twin), clock = (TwoHeads(), TwoHeads()), Clock()
    twin.load_state_dict(model.state_dict())
    optimizer, naive = sgd(model), sgd(twin)
    take_time(model, find_layers(model), clock.advance)
    with deadline(model, optimizer, seconds, clock=clock) as work:
        loop(model, optimizer)
    assert {name for name, steps in work.layer_steps.items() if steps == 2} == reached
    assert work.seconds == seconds
    loop(twin, naive, steps=1)
    once = parameters_of(twin)
    loop(twin, naive, steps=1)
    twice = parameters_of(twin)
    for name, value in parameters_of(model).items():
        assert torch.equal(value, twice[name] if name.partition(".")[0] in reached else once[name]), name
