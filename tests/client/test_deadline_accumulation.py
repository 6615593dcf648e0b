"""Several backward passes for one optimizer step, and steps that are left out."""

from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
from networks import Task, backward, mlp_task, parameters_of, same
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from virtual_time import Clock, take_time

from salf.client.deadline_block import deadline
from salf.layers.find import find_layers
from salf.update import check_update

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


def accumulate_groups(task: Task, optimizer: Optimizer, groups: Iterable[int]) -> None:
    for passes in groups:
        accumulate(task, optimizer, passes, steps=1)


def step_over(task: Task, optimizer: Optimizer, passes: int, reached: Mapping[str, int], first: int = 0) -> None:
    """Step once, with the mean over as many passes as have reached each layer, times what `passes` of them weigh."""
    means: dict[str, Tensor] = {}
    for layer in find_layers(task.model):
        optimizer.zero_grad()
        for number in range(reached[layer.name]):
            backward(task.loss(first + number))
        for name in layer.parameters if reached[layer.name] else ():
            gradient, factor = task.model.get_parameter(name).grad, passes / reached[layer.name]
            assert gradient is not None
            means[name] = gradient if factor == 1 else gradient * factor
    for name, parameter in task.model.named_parameters():
        parameter.grad = means.get(name)
    optimizer.step()


def expected(passes: int, steps: int, reached: Mapping[str, int]) -> dict[str, Tensor]:
    """The weights after `steps` steps, and one in which `reached` passes have reached each layer."""
    task = mlp_task()
    optimizer = sgd(task.model)
    accumulate(task, optimizer, passes, steps)
    step_over(task, optimizer, passes, reached, steps * passes)
    return parameters_of(task.model)


@pytest.mark.parametrize("known", [True, False], ids=["given", "learnt"])
@pytest.mark.parametrize("passes", [1, 2, 3, 16])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("finished", [0, 1, 15])
def test_finished_passes_and_layers_are_kept(known: bool, passes: int, depth: int, finished: int) -> None:
    finished = min(finished, passes - 1)
    task, clock = timed_task()
    optimizer = sgd(task.model)
    seconds = (passes + finished) * PASS + 1 + depth
    with deadline(task.model, optimizer, seconds, clock=clock, accumulate=passes if known else None) as work:
        accumulate(task, optimizer, passes)
    reached = {"fc1": finished, "fc2": finished + (depth > 1), "fc3": finished + 1}
    assert (work.steps, work.seconds) == (1, seconds)
    assert work.layer_steps == {name: 1 + (count > 0) for name, count in reached.items()}
    assert work.layer_passes == {name: passes + count for name, count in reached.items()}
    assert work.layer_examples == {name: 5 * (passes + count) for name, count in reached.items()}
    assert same(parameters_of(task.model), expected(passes, 1, reached))
    update = work.update(num_examples=20)
    assert update.passes == work.layer_passes
    assert update.examples == work.layer_examples
    check_update(update, find_layers(task.model), task.model.state_dict())


def test_finished_passes_are_kept_when_the_time_is_up_in_a_forward_pass() -> None:
    task, clock = timed_task()
    optimizer = sgd(task.model)
    with deadline(task.model, optimizer, 2 * PASS + 1, clock=clock, accumulate=4) as work:
        accumulate(task, optimizer, passes=4)
    assert work.layer_passes == {"fc1": 2, "fc2": 2, "fc3": 2}
    assert same(parameters_of(task.model), expected(4, 0, {"fc1": 2, "fc2": 2, "fc3": 2}))


def test_what_one_block_has_learnt_the_next_one_knows() -> None:
    task, clock = timed_task()
    optimizer = sgd(task.model)
    with deadline(task.model, optimizer, 100, clock=clock):
        accumulate(task, optimizer, passes=2, steps=1)
    with deadline(task.model, optimizer, 3, clock=clock) as work:
        accumulate(task, optimizer, passes=2)
    assert work.layer_passes == {"fc1": 0, "fc2": 1, "fc3": 1}


@pytest.mark.parametrize(("seconds", "passes"), [(PASS + 1, 1), (PASS + 3, 2), (2 * PASS + 3, 3)])
def test_while_the_number_of_passes_is_unknown_their_gradients_are_not_stepped(seconds: float, passes: int) -> None:
    task, clock = timed_task()
    optimizer = sgd(task.model)
    before = parameters_of(task.model)
    with (
        pytest.warns(UserWarning, match=f"gradients of {passes} backward passes are lost.*pass accumulate="),
        deadline(task.model, optimizer, seconds, clock=clock) as work,
    ):
        accumulate(task, optimizer, passes=5)
    assert (work.depth, work.interrupted) == (0, True)
    assert same(parameters_of(task.model), before)


def test_in_the_first_pass_the_loop_shows_whether_it_accumulates() -> None:
    """The loop's own step runs if it follows the first pass; another pass ends the block without a step."""
    task, clock = timed_task()
    optimizer = sgd(task.model)
    with deadline(task.model, optimizer, 3, clock=clock) as work:
        accumulate(task, optimizer, passes=1)
    assert work.layer_passes == {"fc1": 0, "fc2": 1, "fc3": 1}
    assert same(parameters_of(task.model), expected(1, 0, work.layer_passes))
    task, clock = timed_task()
    optimizer = sgd(task.model)
    before = parameters_of(task.model)
    with pytest.warns(UserWarning, match="1 backward passes"), deadline(task.model, optimizer, 3, clock=clock) as work:
        accumulate(task, optimizer, passes=8)
    assert (work.depth, work.seconds) == (0, 3)
    assert same(parameters_of(task.model), before)


@pytest.mark.parametrize("passes", [1, 2])
def test_more_passes_than_learnt_are_noticed(passes: int) -> None:
    task, clock = timed_task()
    optimizer = sgd(task.model)
    block = deadline(task.model, optimizer, (passes + 2) * PASS + 2, clock=clock)
    with pytest.warns(UserWarning, match="pass accumulate="), block as work:
        accumulate_groups(task, optimizer, (passes, 9))
    assert list(work.layer_steps.values()) == [1, 1, 1]


def test_a_shorter_group_at_the_end_of_an_epoch_does_not_change_the_number() -> None:
    task, clock = timed_task()
    optimizer = sgd(task.model)
    with deadline(task.model, optimizer, 7 * PASS + 2, clock=clock) as work:
        accumulate_groups(task, optimizer, (4, 1, 4))
    assert work.layer_passes == {"fc1": 7, "fc2": 7, "fc3": 8}
    twin = mlp_task()
    naive = sgd(twin.model)
    accumulate_groups(twin, naive, (4, 1))
    step_over(twin, naive, 4, {"fc1": 2, "fc2": 2, "fc3": 3})
    assert same(parameters_of(task.model), parameters_of(twin.model))


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
    assert work.layer_passes == {"fc1": 1, "fc2": 1, "fc3": 2}


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


def test_a_number_of_passes_that_the_loop_does_not_take_never_enlarges_a_step() -> None:
    task, clock = timed_task()
    optimizer = sgd(task.model)
    with deadline(task.model, optimizer, 2 * PASS + 2, clock=clock, accumulate=8) as work:
        accumulate(task, optimizer, passes=1)
    assert work.layer_passes == {"fc1": 2, "fc2": 2, "fc3": 3}
    assert same(parameters_of(task.model), expected(1, 2, {"fc1": 0, "fc2": 0, "fc3": 1}))
