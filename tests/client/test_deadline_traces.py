"""A block leaves no trace: hooks go, errors pass, models are as they were and may be thrown away."""

import copy
import gc
import itertools
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial

import pytest
import torch
from networks import TASKS, Task, backward, mlp_task, parameters_of, same, train
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer
from virtual_time import Clock, on_gradient, take_time

from salf.client.deadline_block import deadline
from salf.client.work import Work
from salf.errors import InvalidSetting
from salf.layers.find import find_layers

every_task = pytest.mark.parametrize("make", TASKS.values(), ids=TASKS.keys())


def sgd(model: nn.Module) -> SGD:
    return SGD([value for value in model.parameters() if value.requires_grad], lr=0.1, momentum=0.9)


def traces(model: nn.Module, optimizer: Optimizer) -> dict[str, object]:
    """Everything by which a block could be noticed after it."""
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[f"{name}: {key}"] = len(value) if "hooks" in key else None
    for name, parameter in model.named_parameters():
        found[f"{name}: attributes"] = sorted(vars(parameter))
        found[f"{name}: hooks"] = len(parameter._post_accumulate_grad_hooks or ())
        found[f"{name}: backward hooks"] = len(parameter._backward_hooks or ())
    for key, value in vars(optimizer).items():
        found[f"optimizer: {key}"] = len(value) if "hooks" in key else None
    return found


@contextmanager
def unchanged(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    before = traces(model, optimizer)
    yield
    assert traces(model, optimizer) == before
    assert torch.is_grad_enabled()


def test_a_block_can_be_noticed_while_it_lasts() -> None:
    task = mlp_task()
    optimizer = sgd(task.model)
    before = traces(task.model, optimizer)
    with deadline(task.model, optimizer, 1, clock=Clock()):
        assert traces(task.model, optimizer) != before
    assert traces(task.model, optimizer) == before


@every_task
@pytest.mark.parametrize("seconds", [1.0, 2.0, 3.0, 20.0])
def test_an_interrupted_block_leaves_nothing(make: Callable[[], Task], seconds: float) -> None:
    task, clock = make(), Clock()
    optimizer = sgd(task.model)
    take_time(task.model, find_layers(task.model, task.example), clock.advance)
    with unchanged(task.model, optimizer), deadline(task.model, optimizer, seconds, clock=clock) as work:
        train(task, optimizer)
    assert work.interrupted
    assert all(parameter.grad is None for parameter in task.model.parameters())
    train(task, optimizer, steps=2)
    assert work.seconds <= clock.seconds - 2


def test_a_block_that_ends_by_itself_leaves_nothing_but_the_last_gradients() -> None:
    task = mlp_task()
    optimizer = sgd(task.model)
    train(task, optimizer, steps=1)
    with unchanged(task.model, optimizer), deadline(task.model, optimizer, 1, clock=Clock()):
        train(task, optimizer, steps=1)
    assert all(parameter.grad is not None for parameter in task.model.parameters())


class Surprise(Exception):
    """Something only the user knows of."""


ERRORS = [Surprise("mine"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), StopIteration(), RuntimeError("torch")]
every_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


@every_error
@pytest.mark.parametrize("where", ["loop", "forward", "backward", "step"])
def test_what_the_user_raises_passes_untouched(error: BaseException, where: str) -> None:
    task, twin = mlp_task(), mlp_task()
    optimizer = sgd(task.model)
    works: list[Work] = []

    def explode(here: str) -> None:
        if here == where and works and works[0].steps == 2:
            raise error

    def block() -> None:
        with deadline(task.model, optimizer, 1, clock=Clock()) as work:
            works.append(work)
            train(task, optimizer, steps=2)
            explode("loop")
            train(task, optimizer, steps=1)

    task.model.get_submodule("fc2").register_forward_hook(lambda *_: explode("forward"))
    on_gradient(task.model, "fc2.weight", lambda: explode("backward"))
    optimizer.register_step_pre_hook(lambda *_: explode("step"))
    with unchanged(task.model, optimizer), pytest.raises(type(error)) as caught:
        block()
    assert caught.value is error
    assert error.__cause__ is None
    assert (works[0].steps, works[0].interrupted) == (2, False)
    train(twin, sgd(twin.model), steps=2)
    assert same(parameters_of(task.model), parameters_of(twin.model))
    assert len(works[0].update(1).deltas) == 6


def test_an_error_in_the_model_itself_passes_and_may_be_handled_in_the_loop() -> None:
    class Fussy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 2:
                raise Surprise
            scores: Tensor = self.fc(x)
            return scores

    task = Task(Fussy(), mlp_task((6, 3)).batches)
    optimizer = sgd(task.model)
    with unchanged(task.model, optimizer), deadline(task.model, optimizer, 1, clock=Clock()) as work:
        for step in range(3):
            with suppress(Surprise):
                train(task, optimizer, steps=1, first=step)
    assert (work.steps, work.interrupted) == (2, False)


def test_a_loop_that_catches_exceptions_does_not_catch_the_deadline() -> None:
    task, clock = mlp_task(), Clock()
    optimizer = sgd(task.model)
    take_time(task.model, find_layers(task.model), clock.advance)
    left: list[str] = []
    with deadline(task.model, optimizer, 4 + 1 + 2, clock=clock) as work:
        for step in range(100):
            try:
                train(task, optimizer, steps=1, first=step)
            except Exception:  # noqa: BLE001
                left.append("caught")
            finally:
                left.append("cleaned up")
    assert list(work.layer_steps.values()) == [1, 2, 2]
    assert left == ["cleaned up", "cleaned up"]


def test_a_loop_that_catches_everything_is_left_at_the_next_look() -> None:
    task, clock = mlp_task(), Clock()
    optimizer = sgd(task.model)
    take_time(task.model, find_layers(task.model), clock.advance)
    held_up = 0
    with unchanged(task.model, optimizer), deadline(task.model, optimizer, 4 + 1 + 1, clock=clock) as work:
        for step in itertools.count():
            try:
                train(task, optimizer, steps=1, first=step)
            except BaseException:
                held_up += 1
                if held_up == 3:
                    raise
    assert held_up == 3
    assert work.interrupted
    assert work.steps == 1


def test_contexts_of_the_loop_are_left_properly() -> None:
    task, clock = mlp_task(), Clock()
    optimizer = sgd(task.model)
    take_time(task.model, find_layers(task.model), clock.advance)
    with deadline(task.model, optimizer, 2, clock=clock), torch.autocast("cpu", enabled=True):
        task.model.eval()
        try:
            train(task, optimizer)
        finally:
            task.model.train()
    assert not torch.is_autocast_enabled("cpu")
    assert task.model.training


@pytest.mark.parametrize(("outer", "steps"), [(100.0, 2), (3.0, 0)], ids=["the inner time", "both times"])
def test_blocks_on_two_models_can_be_nested(outer: float, steps: int) -> None:
    one, other, clock = mlp_task(), TASKS["misordered"](), Clock()
    layers = find_layers(other.model, other.example)
    take_time(one.model, find_layers(one.model), clock.advance)
    take_time(other.model, layers, clock.advance)
    first, second = sgd(one.model), sgd(other.model)
    with unchanged(one.model, first), unchanged(other.model, second):
        with deadline(one.model, first, outer, clock=clock) as over:
            with deadline(other.model, second, 3, layers=layers, clock=clock) as under:
                train(other, second)
            train(one, first, steps=2)
        assert under.layer_steps == {"stem": 0, "middle": 1, "head": 1}
        assert (over.steps, over.depth) == (steps, 3 if steps else 0)
        assert (under.interrupted, over.interrupted) == (True, not steps)


def test_the_outer_deadline_leaves_the_inner_block_too() -> None:
    one, other, clock = mlp_task(), TASKS["misordered"](), Clock()
    first, second = sgd(one.model), sgd(other.model)
    take_time(other.model, find_layers(other.model, other.example), clock.advance)
    inside = True
    with unchanged(one.model, first), unchanged(other.model, second):
        with deadline(one.model, first, 4 + 2, clock=clock) as over:
            train(one, first, steps=1)
            with deadline(other.model, second, 100, clock=clock) as under:
                train(other, second, steps=2)
                train(one, first, steps=1)
                inside = False
        assert inside
        assert (over.interrupted, over.steps) == (True, 1)
        assert (under.interrupted, under.steps) == (False, 2)
        assert len(under.update(1).deltas) == 6


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_copy_made_inside_the_block_is_free_of_it(copied: Callable[[nn.Module], nn.Module]) -> None:
    task, now = mlp_task(), 0.0
    optimizer = sgd(task.model)
    with deadline(task.model, optimizer, 1, clock=lambda: now) as work:
        train(task, optimizer, steps=1)
        best = copied(task.model)
        now = 2.0
        best(task.example)
        best.get_submodule("fc1")(task.example)
        assert find_layers(task.model, task.example).names == ("fc1", "fc2", "fc3")
        train(task, optimizer)
    assert work.interrupted
    best(task.example)
    assert same(parameters_of(best), parameters_of(task.model))


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_model_can_be_thrown_away_after_its_block(interrupted: bool) -> None:
    task, clock = mlp_task(), Clock()
    model, batches = task.model, task.batches
    del task
    gone = weakref.ref(model)
    optimizer = sgd(model)
    on_gradient(model, "fc2.bias", lambda: clock.advance(10 * interrupted))
    with deadline(model, optimizer, 5, clock=clock) as work:
        train(Task(model, batches), optimizer, steps=1)
    assert work.interrupted == interrupted
    update = work.update(1)
    del model, optimizer
    gc.collect()
    assert gone() is None
    assert update.deltas
    assert work.depth


def test_an_optimizer_that_may_call_its_closure_often_is_stopped_before_it_does_harm() -> None:
    task = mlp_task()
    optimizer = LBFGS(task.model.parameters())
    before = parameters_of(task.model)

    def closure() -> float:
        optimizer.zero_grad()
        loss = task.loss()
        backward(loss)
        return loss.item()

    with deadline(task.model, seconds=1, clock=Clock()) as work:
        for call in (partial(optimizer.step, closure), partial(optimizer.step, closure=closure)):
            with pytest.raises(InvalidSetting, match=r"LBFGS\.step\(closure\)"):
                call()
    assert work.steps == 0
    assert same(parameters_of(task.model), before)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("returns", [True, False])
def test_a_closure_that_is_called_once_may_be_interrupted(depth: int, returns: bool) -> None:
    task, clock, twin = mlp_task(), Clock(), mlp_task()
    take_time(task.model, find_layers(task.model), clock.advance)
    optimizer, naive = sgd(task.model), sgd(twin.model)

    def closure(step: int) -> Tensor:
        optimizer.zero_grad()
        loss = task.loss(step)
        backward(loss)
        nn.utils.clip_grad_norm_(task.model.parameters(), 100.0)
        return loss

    with deadline(task.model, None if returns else optimizer, 2 * 4 + 1 + depth, clock=clock) as work:
        for step in work.batches(range(9)) if returns else range(9):
            optimizer.step(partial(closure, step))
    train(twin, naive, steps=2)
    naive.zero_grad()
    backward(twin.loss(2))
    for layer in find_layers(twin.model)[: 3 - depth]:
        for name in layer.parameters:
            twin.model.get_parameter(name).grad = None
    naive.step()
    assert list(work.layer_steps.values()) == [2] * (3 - depth) + [3] * depth
    assert same(parameters_of(task.model), parameters_of(twin.model))
    assert work.update(5).deltas.keys() == dict(task.model.named_parameters()).keys()


def test_the_users_own_hooks_stay() -> None:
    task, clock = mlp_task(), Clock()
    optimizer = sgd(task.model)
    seen: list[str] = []
    task.model.register_forward_pre_hook(lambda *_: seen.append("forward"))
    on_gradient(task.model, "fc1.weight", lambda: seen.append("gradient"))
    optimizer.register_step_pre_hook(lambda *_: seen.append("step"))
    with deadline(task.model, optimizer, 1, clock=clock), nullcontext():
        train(task, optimizer, steps=1)
        clock.advance(1)
        train(task, optimizer, steps=1)
    seen.clear()
    train(task, optimizer, steps=1)
    assert seen == ["forward", "gradient", "step"]
