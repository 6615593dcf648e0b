"""What a block keeps, reports and returns."""

import itertools
from collections.abc import Callable

import pytest
import torch
from networks import TASKS, Task, backward, buffers_of, mlp_task, parameters_of, same, train
from torch import Tensor, nn
from torch.optim import SGD
from virtual_time import Clock, on_gradient, take_time

from salf.client.deadline_block import deadline
from salf.errors import SalfError
from salf.layers.find import Layers, find_layers
from salf.update import check_update

every_task = pytest.mark.parametrize("make", TASKS.values(), ids=TASKS.keys())


def slow(task: Task) -> tuple[Layers, Clock]:
    """Give a task a second for each forward pass and for each layer of a backward pass."""
    layers, clock = find_layers(task.model, task.example), Clock()
    take_time(task.model, layers, clock.advance)
    return layers, clock


def test_a_loop_that_ends_in_time_is_left_alone() -> None:
    task = mlp_task()
    twin = task.twin()
    optimizer = SGD(task.model.parameters(), lr=0.1, momentum=0.9)
    layers, clock = slow(task)
    with deadline(task.model, optimizer, 100, clock=clock) as work:
        train(task, optimizer, steps=5)
        clock.advance(2.5)
    train(twin, SGD(twin.model.parameters(), lr=0.1, momentum=0.9), steps=5)
    assert same(parameters_of(task.model), parameters_of(twin.model))
    assert (work.steps, work.depth, work.interrupted, work.seconds) == (5, 3, False, 22.5)
    assert work.layer_steps == dict.fromkeys(layers.names, 5)


def test_by_default_time_is_real() -> None:
    task = mlp_task()
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, 3600) as work:
        train(task, optimizer, steps=2)
    assert not work.interrupted
    assert 0 < work.seconds < 3600
    with deadline(task.model, optimizer, 1e-9) as work:
        train(task, optimizer)
    assert work.interrupted
    assert work.depth == work.steps == 0


def test_a_loop_without_steps_sends_nothing() -> None:
    task = mlp_task()
    with deadline(task.model, SGD(task.model.parameters(), lr=0.1), 1, clock=Clock()) as work:
        pass
    update = work.update(num_examples=3)
    assert (work.steps, work.depth, work.interrupted, work.seconds) == (0, 0, False, 0.0)
    assert not update.deltas
    assert not update.buffers
    assert update.steps == {}


def test_a_pass_without_a_step_sends_nothing() -> None:
    task = mlp_task()
    with deadline(task.model, SGD(task.model.parameters(), lr=0.1), 1, clock=Clock()) as work:
        backward(task.loss())
    assert work.depth == 0
    assert not work.update(3).deltas


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_an_interrupted_forward_pass_leaves_the_finished_steps(steps: int) -> None:
    task, twin = TASKS["residual"](), TASKS["residual"]()
    layers, clock = slow(task)
    optimizer = SGD(task.model.parameters(), lr=0.1, momentum=0.9)
    with deadline(task.model, optimizer, steps * 13 + 1, layers=layers, clock=clock) as work:
        train(task, optimizer)
    train(twin, SGD(twin.model.parameters(), lr=0.1, momentum=0.9), steps)
    assert same(parameters_of(task.model), parameters_of(twin.model))
    assert same(buffers_of(task.model), buffers_of(twin.model))
    assert work.interrupted
    assert (work.steps, work.layer_steps) == (steps, dict.fromkeys(layers.names, steps))


def test_the_time_is_looked_at_between_the_modules_of_a_forward_pass() -> None:
    task, clock = mlp_task(), Clock()
    called: list[str] = []
    for name, module in task.model.named_children():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    task.model.get_submodule("fc2").register_forward_hook(lambda *_: clock.advance(10))
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, 10, clock=clock) as work:
        train(task, optimizer)
    assert called == ["fc1", "relu1", "fc2", "relu2"]
    assert work.interrupted


def test_time_that_passes_outside_the_model_counts() -> None:
    task, clock = mlp_task(), Clock()
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, 10, clock=clock) as work:
        for step in itertools.count():
            clock.advance(4)  # the data arrive slowly
            train(task, optimizer, steps=1, first=step)
    assert (work.steps, work.seconds) == (2, 12)


def test_a_clock_need_not_start_at_zero() -> None:
    task, clock = mlp_task(), Clock()
    clock.advance(1e6)
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, 10, clock=clock) as work:
        clock.advance(4)
        train(task, optimizer, steps=1)
    assert (work.steps, work.seconds, work.interrupted) == (1, 4, False)


def test_an_infinite_deadline_is_none() -> None:
    task, clock = mlp_task(), Clock()
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, float("inf"), clock=clock) as work:
        clock.advance(1e9)
        train(task, optimizer, steps=1)
    assert not work.interrupted


@every_task
@pytest.mark.parametrize("seconds", [1.0, 2.0, 3.5, 9.0, 14.0, 20.0, 31.0])
def test_an_update_is_what_changed_and_may_be_aggregated(make: Callable[[], Task], seconds: float) -> None:
    task = make()
    layers, clock = slow(task)
    initial = parameters_of(task.model)
    trainable = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    optimizer = SGD(trainable, lr=0.1, momentum=0.9, weight_decay=0.01)
    with deadline(task.model, optimizer, seconds, layers=layers, clock=clock) as work:
        train(task, optimizer)
    update, local = work.update(num_examples=20), parameters_of(task.model)
    check_update(update, layers, task.model.state_dict())
    assert update.num_examples == 20
    sent = [layer for layer in layers if work.layer_steps[layer.name]]
    assert update.steps == {layer.name: work.layer_steps[layer.name] for layer in sent}
    assert list(layers[len(layers) - work.depth :]) == sent
    assert set(update.deltas) == {name for layer in sent for name in layer.parameters}
    for name, before in initial.items():
        if name in update.deltas:
            assert torch.equal(update.deltas[name], local[name] - before)
            torch.testing.assert_close(before + update.deltas[name], local[name])
        else:
            assert torch.equal(local[name], before)
    state = task.model.state_dict()
    assert set(update.buffers) == {name for layer in sent for name in layer.buffers}
    assert all(torch.equal(value, state[name]) for name, value in update.buffers.items())
    steps = list(work.layer_steps.values())
    assert steps == sorted(steps)
    assert steps[-1] - steps[0] <= 1
    assert work.steps == steps[0]


def test_an_update_is_a_copy() -> None:
    task = TASKS["residual"]()
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, 1, clock=Clock()) as work:
        train(task, optimizer, steps=1)
    update = work.update(1)
    deltas = {name: delta.clone() for name, delta in update.deltas.items()}
    buffers = {name: buffer.clone() for name, buffer in update.buffers.items()}
    with deadline(task.model, optimizer, 1, clock=Clock()) as later:
        train(task, optimizer, steps=3)
    later.update(1)
    again = work.update(2)
    assert again.num_examples == 2
    for known in (update, again):
        assert same(dict(known.deltas), deltas)
        assert same(dict(known.buffers), buffers)


def test_blocks_follow_each_other_on_one_model() -> None:
    task = mlp_task()
    layers, clock = slow(task)
    optimizer = SGD(task.model.parameters(), lr=0.1)
    for seconds in (2.0, 6.0, 1.0, 3.0, 9.0):
        initial = parameters_of(task.model)
        with deadline(task.model, optimizer, seconds, layers=layers, clock=clock) as work:
            train(task, optimizer)
        deltas = work.update(1).deltas
        assert deltas.keys() == {name for layer in layers if work.layer_steps[layer.name] for name in layer.parameters}
        for name, value in parameters_of(task.model).items():
            assert torch.equal(value - initial[name], deltas.get(name, torch.zeros_like(value)))


def test_the_update_may_also_be_asked_for_later_or_never() -> None:
    task = mlp_task()
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, 1, clock=Clock()):
        train(task, optimizer, steps=2)
    before = parameters_of(task.model)
    with deadline(task.model, optimizer, 1, clock=Clock()) as work:
        train(task, optimizer, steps=2)
    with deadline(task.model, optimizer, 1, clock=Clock()):
        pass
    assert same(dict(work.update(1).deltas), {n: v - before[n] for n, v in parameters_of(task.model).items()})


def test_there_is_no_update_inside_the_block() -> None:
    task = mlp_task()
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, 1, clock=Clock()) as work:
        train(task, optimizer, steps=1)
        with pytest.raises(SalfError, match=r"work\.update\(\) is called inside .*; call it after the block"):
            work.update(num_examples=1)
    assert work.update(num_examples=1).deltas


def test_buffers_of_unreached_layers_go_back() -> None:
    task = TASKS["counting"]()
    layers, clock = slow(task)
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, 3 + 2, layers=layers, clock=clock) as work:
        train(task, optimizer)
    assert work.layer_steps == {"stem": 1, "head": 2}
    counts = {name: int(value) for name, value in buffers_of(task.model).items()}
    assert counts == {"stem.calls": 1, "stem.rows": 5, "head.calls": 2, "head.rows": 10}
    sent = work.update(1).buffers
    assert {name: int(value) for name, value in sent.items()} == counts
    assert all(value.dtype == torch.int64 for value in sent.values())


class Twice(nn.Module):
    """Calls its encoder on two halves of a batch, so that BatchNorm changes twice in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TASKS["residual"]().model

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2)
        return torch.cat((self.inner(one), self.inner(other)))


@pytest.mark.parametrize("whole", [False, True], ids=["in the model", "in the loop"])
def test_buffers_go_back_where_the_model_is_called_twice_for_a_step(whole: bool) -> None:
    task = TASKS["residual"]()
    model = task.model if whole else Twice()
    layers, clock = find_layers(model, task.example), Clock()
    inputs, labels = task.batches[0]
    take_time(model, layers, clock.advance, forward=0.5)
    before, optimizer = buffers_of(model), SGD(model.parameters(), lr=0.1)
    with deadline(model, optimizer, 1 + 1, layers=layers, clock=clock) as work:
        scores = torch.cat([model(half) for half in inputs.chunk(2)]) if whole else model(inputs)
        backward(nn.functional.cross_entropy(scores, labels))
    assert work.depth == 1
    assert same(buffers_of(model), before)


def test_buffers_go_back_where_the_parts_of_a_model_are_called_without_it() -> None:
    model, clock = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)), Clock()
    before, optimizer = buffers_of(model), SGD(model.parameters(), lr=0.1)
    take_time(model, find_layers(model), clock.advance)
    with deadline(model, optimizer, 2, clock=clock) as work:
        scores = torch.randn(4, 6)
        for part in model:
            scores = part(scores)
        backward(scores.sum())
    assert list(work.layer_steps.values()) == [0, 0, 1]
    assert same(buffers_of(model), before)
    for _ in range(2):  # what this has taught does not disturb later blocks
        with deadline(model, optimizer, 100, clock=clock) as work:
            backward(model(torch.randn(4, 6)).sum())
            optimizer.step()
        assert work.steps == 1


def test_a_layer_that_is_used_only_in_part_is_sent_whole_and_one_that_is_not_used_never() -> None:
    task = TASKS["unused"]()
    layers = find_layers(task.model)
    optimizer = SGD(task.model.parameters(), lr=0.1, weight_decay=0.5, momentum=0.9)
    initial = parameters_of(task.model)
    with deadline(task.model, optimizer, 1, clock=Clock()) as work:
        train(task, optimizer, steps=2)
    assert work.layer_steps == {"stem": 2, "idle": 0, "head": 2}
    update = work.update(1)
    check_update(update, layers, task.model.state_dict())
    assert update.deltas.keys() == {"stem.weight", "stem.bias", "head.weight", "head.bias", "head.idle"}
    assert not update.deltas["head.idle"].any()
    for name in ("idle.weight", "idle.bias", "head.idle"):
        assert torch.equal(task.model.get_parameter(name), initial[name])


def test_frozen_parameters_neither_move_nor_travel() -> None:
    task = TASKS["lora"]()
    initial = parameters_of(task.model)
    layers, clock = slow(task)
    optimizer = SGD([value for value in task.model.parameters() if value.requires_grad], lr=0.1, weight_decay=0.1)
    with deadline(task.model, optimizer, 6 + 1 + 2, clock=clock) as work:
        train(task, optimizer)
    assert work.layer_steps == {"lower.down": 1, "lower.up": 1, "upper.down": 1, "upper.up": 2, "head": 2}
    assert not any("base" in name for name in work.update(1).deltas)
    assert all(torch.equal(value, initial[n]) for n, value in parameters_of(task.model).items() if "base" in n)
    assert layers.names == tuple(work.layer_steps)


class Wandering(nn.Module):
    """Skips its middle until `long` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.long = False

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        scores: Tensor = self.head(torch.relu(self.middle(x)) if self.long else x)
        return scores


@pytest.mark.parametrize(("seconds", "steps"), [(3 + 1 + 1, [1, 0, 2]), (3 + 1 + 2, [1, 1, 2]), (3 + 1 + 3, [2, 1, 2])])
@pytest.mark.parametrize("slow", ["weight", "bias"])
def test_a_layer_that_earlier_steps_did_not_use_is_still_sent_whole(
    seconds: float, steps: list[int], slow: str
) -> None:
    model, clock = Wandering(), Clock()
    task = Task(model, mlp_task((6, 3)).batches)
    model.stem.register_forward_hook(lambda *_: clock.advance(1))
    for name in ("stem", "middle", "head"):
        on_gradient(model, f"{name}.{slow}", lambda: clock.advance(1))
    optimizer = SGD(model.parameters(), lr=0.1)
    with deadline(model, optimizer, seconds, clock=clock) as work:
        train(task, optimizer, steps=1)
        model.long = True
        train(task, optimizer)
    assert list(work.layer_steps.values()) == steps
    deltas = work.update(1).deltas
    assert ("middle.weight" in deltas) == ("middle.bias" in deltas) == bool(steps[1])
