"""Faults of loops and of other code: nothing is lost that was finished, and nothing scaled or unfinished is stepped."""

import _thread
import threading
from typing import Any

import pytest
import torch
from networks import Task, backward, mlp_task, parameters_of, same, train
from torch import Tensor, nn
from torch.optim import SGD
from virtual_time import Clock, take_time
from works_with import leaves_no_trace

from salf.client import deadline
from salf.client.torch_events import watch
from salf.layers import find_layers

PASS = 4  # seconds: one for the forward pass and one for each of three layers


def timed_task() -> tuple[Task, Clock]:
    task, clock = mlp_task(), Clock()
    take_time(task.model, find_layers(task.model), clock.advance)
    return task, clock


@pytest.mark.parametrize("returns", [False, True])
def test_a_scaler_is_seen_where_it_scales(returns: bool) -> None:
    """Also if autocast is inside the model, and the block was not told."""
    task, clock = timed_task()
    optimizer, scaler = SGD(task.model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = parameters_of(task.model)
    with deadline(task.model, optimizer, 3 * PASS + 1, clock=clock, accumulate=8) as work:
        for number in work.batches(range(8)) if returns else range(8):
            backward(scaler.scale(task.loss(number) / 8))
    assert set(work.layer_passes.values()) == {3}
    change = max(float((value - before[name]).abs().max()) for name, value in parameters_of(task.model).items())
    assert 0 < change < 1  # scaled gradients would move the weights a thousand times as far


def test_steps_after_a_closure_that_failed_are_seen() -> None:
    task, clock = timed_task()
    optimizer, attempts = SGD(task.model.parameters(), lr=0.1), 0

    def closure() -> Tensor:
        nonlocal attempts
        attempts += 1
        optimizer.zero_grad()
        loss = task.loss(attempts)
        if attempts == 1:
            raise MemoryError
        backward(loss)
        return loss

    with deadline(task.model, optimizer, 100, clock=clock) as work:
        for _ in range(4):
            try:
                optimizer.step(closure)
            except MemoryError:
                continue
    assert (attempts, work.steps, work.depth) == (4, 3, 3)


def test_steps_of_an_optimizer_that_clears_its_gradients_are_seen() -> None:
    class Tidy(SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            self.zero_grad()

    task, clock = timed_task()
    optimizer, twin = Tidy(task.model.parameters(), lr=0.1), mlp_task()
    with deadline(task.model, optimizer, 2 * PASS + 3, clock=clock) as work:
        for number in range(9):
            backward(task.loss(number))
            optimizer.step()
    train(twin, SGD(twin.model.parameters(), lr=0.1), steps=2)
    assert work.layer_steps == {"fc1": 2, "fc2": 3, "fc3": 3}
    assert torch.equal(task.model.get_parameter("fc1.bias"), twin.model.get_parameter("fc1.bias"))


def test_an_error_in_before_step_passes_and_leaves_nothing() -> None:
    task, clock = timed_task()

    def clip() -> None:
        raise ZeroDivisionError("in clip")

    block = deadline(task.model, SGD(task.model.parameters(), lr=0.1), PASS + 2, clock=clock, before_step=clip)
    with pytest.raises(ZeroDivisionError, match="in clip"), block:
        train(task, SGD(task.model.parameters(), lr=0.1))
    assert leaves_no_trace(task.model)


def test_before_step_runs_on_the_gradients_that_are_kept() -> None:
    task, clock = timed_task()
    optimizer, seen = SGD(task.model.parameters(), lr=0.1), []

    def clip() -> None:
        seen.append({name for name, value in task.model.named_parameters() if value.grad is not None})
        nn.utils.clip_grad_norm_(task.model.parameters(), 1e-6)

    with deadline(task.model, optimizer, PASS + 2, clock=clock, before_step=clip) as work:
        train(task, optimizer, steps=1)
        before = parameters_of(task.model)
        train(task, optimizer)
    assert seen == [{"fc3.weight", "fc3.bias"}]
    assert work.layer_steps == {"fc1": 1, "fc2": 1, "fc3": 2}
    torch.testing.assert_close(task.model.get_parameter("fc3.bias"), before["fc3.bias"], rtol=0, atol=1e-6)
    assert not torch.equal(task.model.get_parameter("fc3.bias"), before["fc3.bias"])


def test_other_code_may_replace_the_backward_function_within_a_block_and_leave_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, clock = timed_task()
    optimizer, original = SGD(task.model.parameters(), lr=0.1), torch.autograd.backward
    for _ in range(3):
        with deadline(task.model, optimizer, 100, clock=clock) as work:
            inner = torch.autograd.backward
            monkeypatch.setattr(torch.autograd, "backward", lambda *args, inner=inner, **named: inner(*args, **named))
            train(task, optimizer, steps=2)
        assert work.steps == 2
    monkeypatch.undo()
    torch.autograd.backward = original
    assert leaves_no_trace(task.model)


def test_reading_whether_the_time_is_up_does_not_end_the_deadline() -> None:
    task, clock = timed_task()
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, 2 * PASS + 2, clock=clock) as work:
        for number in range(50):
            _ = work.time_is_up
            train(task, optimizer, steps=1, first=number)
    assert (work.interrupted, work.steps) == (True, 2)


def test_an_error_after_the_time_was_up_leaves_the_buffers_as_before() -> None:
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 3))
    clock, before = Clock(), model.state_dict()["0.running_mean"].clone()
    take_time(model, find_layers(model), clock.advance)
    block = deadline(model, seconds=1.5, clock=clock)

    def loop(batches: Any) -> None:
        for batch in batches:
            backward(model(batch).sum())
            raise RuntimeError("of the loop")

    with pytest.raises(RuntimeError, match="of the loop"), block as work:
        loop(work.batches([torch.randn(4, 6)] * 3))
    assert torch.equal(model.state_dict()["0.running_mean"], before)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if not name.startswith("2"))


def test_hooks_that_run_in_a_thread_of_the_engine_belong_to_the_open_call() -> None:
    """As on an accelerator, where gradients arrive in a thread that Python does not know."""
    seen, done = [], threading.Event()
    weight = nn.Parameter(torch.ones(1))

    class Watching:
        def on_backward(self, call: Any, roots: Any, inputs: Any) -> None:
            call()

        def on_scale(self, scaler: Any) -> None: ...

        def before_step(self, optimizer: Any, arguments: Any, named: Any) -> None:
            seen.append(type(optimizer).__name__)

        def after_step(self, optimizer: Any) -> None:
            done.set()

    def step_elsewhere(_: Tensor) -> None:
        _thread.start_new_thread(SGD([weight], lr=0.1).step, ())
        assert done.wait(10)

    weight.register_hook(step_elsewhere)  # type: ignore[no-untyped-call]
    end = watch(Watching())
    backward(weight.sum())
    end()
    assert seen == ["SGD"]
    assert same({"weight": weight.detach()}, {"weight": torch.ones(1)})


@pytest.mark.filterwarnings("ignore:salf. a gradient of the interrupted step is not finite")
@pytest.mark.parametrize("seconds", [2.5, 3.5, 6.5, 7.5, 10.5, 11.5])
@pytest.mark.parametrize("returns", [False, True])
def test_gradients_that_are_not_finite_are_never_stepped(seconds: float, returns: bool) -> None:
    """The loop leaves such a step out, and so does the block."""
    task, clock = timed_task()
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, seconds, clock=clock) as work:
        for number in work.batches(range(9)) if returns else range(9):
            optimizer.zero_grad()
            backward(task.loss(number) * (float("nan") if number == 1 else 1.0))
            if number != 1:
                optimizer.step()
    assert all(bool(value.isfinite().all()) for value in task.model.parameters())
    assert work.depth > 0


def test_gradients_that_the_loop_replaces_do_not_move_unfinished_layers() -> None:
    task, clock = timed_task()
    optimizer = SGD(task.model.parameters(), lr=0.1, momentum=0.9)
    with deadline(task.model, optimizer, 2 * PASS + 2, clock=clock) as work:
        for number in work.batches(range(9)):
            optimizer.zero_grad()
            backward(task.loss(number))
            for value in task.model.parameters():
                assert value.grad is not None
                value.grad = value.grad.clamp(-1, 1)
            optimizer.step()
    assert work.layer_steps == {"fc1": 2, "fc2": 2, "fc3": 3}


def test_a_loop_that_catches_everything_still_ends_with_its_finished_passes() -> None:
    task, clock = timed_task()
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, 2 * PASS + 1, clock=clock, accumulate=4) as work:
        for number in range(9):
            try:
                backward(task.loss(number) / 4)
            except BaseException:  # noqa: BLE001 - what a careless loop does
                continue
    assert work.interrupted
    assert set(work.layer_passes.values()) == {2}


def test_weights_that_are_swapped_for_an_evaluation_are_not_sent() -> None:
    task, clock = timed_task()
    optimizer, average = SGD(task.model.parameters(), lr=0.1), parameters_of(task.model)
    trained: list[dict[str, Tensor]] = []
    with deadline(task.model, optimizer, PASS + 0.5, clock=clock) as work:
        for number in range(9):
            train(task, optimizer, steps=1, first=number)
            trained.append(parameters_of(task.model))
            task.model.load_state_dict(average)
            with torch.no_grad():
                task.model(task.batches[0][0])
            task.model.load_state_dict(trained[-1])
    assert (len(trained), work.steps, work.interrupted) == (1, 1, True)
    assert same(parameters_of(task.model), trained[0])


def test_a_scaler_may_be_used_again_after_a_step_in_which_the_loop_was_left() -> None:
    task, clock = timed_task()
    optimizer, scaler = SGD(task.model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=4.0)
    for _ in range(3):  # the first one is left in its first step, whose number of passes is not known
        with deadline(task.model, optimizer, 2.5, clock=clock, scaler=scaler):
            for number in range(9):
                optimizer.zero_grad()
                backward(scaler.scale(task.loss(number)))
                scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()


def test_a_loop_that_goes_on_without_its_batches_is_left() -> None:
    task, clock = timed_task()
    with deadline(task.model, seconds=3 * PASS, clock=clock) as work:
        kept = [*work.batches(range(4))]
        for number in kept * 1000:
            train(task, SGD(task.model.parameters(), lr=0.1), steps=1, first=number)
    assert work.interrupted
    assert work.seconds < 100 * PASS
