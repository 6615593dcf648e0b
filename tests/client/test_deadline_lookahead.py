"""Having timed a model, a block ends before a layer that it cannot finish."""

from collections.abc import Callable
from itertools import accumulate, count

import pytest
import torch
from networks import TASKS, Task, mlp_task, train
from torch import nn
from torch.optim import SGD
from virtual_time import Clock, take_time

from salf.client.deadline_block import deadline
from salf.client.time_budget import Stopwatch
from salf.client.work import Work
from salf.layers.find import Layers, find_layers

FORWARD, STEP = 2.0, 0.5
BACKWARD = {"fc3": 1.0, "fc2": 2.0, "fc1": 3.0}
WHOLE = FORWARD + sum(BACKWARD.values()) + STEP
GRID = [quarters / 4 for quarters in range(1, 90)]  # of half seconds, each with a quarter before and after it
COARSE = GRID[::7]


class Device:
    """Trains the network of three layers in virtual time, at a speed that may change."""

    def __init__(self, task: Task | None = None) -> None:
        self.task = mlp_task() if task is None else task
        self.layers: Layers = find_layers(self.task.model, self.task.example)
        self.clock, self.slowness = Clock(), 1.0
        self.optimizer = SGD(self.task.model.parameters(), lr=0.1, momentum=0.9)
        take_time(self.task.model, self.layers, self.spend, forward=FORWARD, backward=BACKWARD)
        self.optimizer.register_step_post_hook(lambda *_: self.spend(STEP))

    def spend(self, seconds: float) -> None:
        self.clock.advance(seconds * self.slowness)

    def block(
        self, seconds: float, steps: int = 1000, upload: float | None = None, clock: Callable[[], float] | None = None
    ) -> Work:
        with deadline(
            self.task.model, self.optimizer, seconds, clock=clock or self.clock, upload_bytes_per_second=upload
        ) as work:
            train(self.task, self.optimizer, steps)
        return work

    def warm(self, steps: int = 3) -> "Device":
        assert self.block(1e6, steps).steps == steps
        return self


def what_fits(seconds: float, upload_seconds: Callable[[int, int], float] = lambda *_: 0.0) -> tuple[int, int]:
    """The most steps, and layers of one more, that are finished and uploaded in time."""
    ends = [FORWARD + backward + STEP for backward in accumulate(BACKWARD.values())]
    steps, depth = 0, 0
    for whole in range(100):
        for layer, end in enumerate(ends, start=1):
            if whole * WHOLE + end + upload_seconds(whole, layer) > seconds:
                return steps, depth
            steps, depth = (whole + 1, 0) if layer == len(ends) else (whole, layer)
    raise AssertionError


def steps_and_depth(work: Work) -> tuple[int, int]:
    return work.steps, sum(steps > work.steps for steps in work.layer_steps.values())


@pytest.mark.parametrize("seconds", GRID)
def test_a_block_on_a_known_model_does_all_that_fits_and_no_more(seconds: float) -> None:
    work = Device().warm().block(seconds)
    assert work.interrupted
    assert work.seconds <= seconds
    assert steps_and_depth(work) == what_fits(seconds)


@pytest.mark.parametrize("seconds", COARSE)
def test_one_step_suffices_to_know_a_model(seconds: float) -> None:
    assert Device().warm(steps=1).block(seconds).seconds <= seconds


@pytest.mark.parametrize("seconds", GRID[::3])
def test_time_for_the_upload_is_kept_in_hand(seconds: float) -> None:
    device = Device().warm()
    sizes = [sum(device.task.model.get_parameter(name).nbytes for name in layer.parameters) for layer in device.layers]
    whole_upload = 4.0
    speed = sum(sizes) / whole_upload

    def upload_seconds(steps: int, depth: int) -> float:
        return whole_upload if steps else sum(sizes[-depth:]) / speed

    work = device.block(seconds, upload=speed)
    sent = sum(delta.nbytes for delta in work.update(1).deltas.values())
    assert steps_and_depth(work) == what_fits(seconds, upload_seconds)
    if sent:
        assert work.seconds + sent / speed <= seconds


def test_a_block_whose_upload_takes_all_its_time_ends_at_once() -> None:
    work = Device().warm().block(20, upload=1)
    assert (work.interrupted, work.depth, work.seconds) == (True, 0, 0)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_upload_counts_before_anything_is_known_too(steps: int) -> None:
    device = Device()
    size = sum(parameter.nbytes for parameter in device.task.model.parameters())
    work = device.block(steps * WHOLE + 5, upload=size / 5)
    assert (work.interrupted, work.steps) == (True, steps)
    assert work.seconds <= steps * WHOLE


@pytest.mark.parametrize("seconds", COARSE)
def test_a_model_never_seen_overshoots_by_no_more_than_what_was_under_way(seconds: float) -> None:
    work = Device().block(seconds)
    assert work.interrupted
    assert work.seconds < seconds + FORWARD + max(BACKWARD.values()) + STEP


def test_a_first_block_learns_from_its_own_steps() -> None:
    work = Device().block(2 * WHOLE + 2 + 1 + 1.75)
    assert steps_and_depth(work) == (2, 1)
    assert work.seconds == 2 * WHOLE + 2 + 1 + 0.5


@pytest.mark.parametrize(("known", "patience"), [(1, 100), (3, 300), (16, 1200)])
@pytest.mark.parametrize("seconds", [1.5 * WHOLE, 2.5 * WHOLE])
def test_a_device_that_was_slow_when_it_was_timed_is_not_written_off(known: int, patience: int, seconds: float) -> None:
    device = Device()
    device.slowness = 4.0
    device.warm(known)
    device.slowness = 1.0
    assert steps_and_depth(device.block(seconds)) < what_fits(seconds)
    assert any(steps_and_depth(device.block(seconds)) == what_fits(seconds) for _ in range(patience))
    for _ in range(50):
        assert steps_and_depth(device.block(seconds)) == what_fits(seconds)


def test_a_device_that_slows_down_is_believed() -> None:
    device = Device().warm(16)
    device.slowness = 3.0
    for _ in range(20):
        device.block(1.5 * 3 * WHOLE)
    work = device.block(1.5 * 3 * WHOLE)
    assert work.seconds <= 1.5 * 3 * WHOLE
    assert work.steps == 1


def test_a_rare_hiccup_is_forgotten() -> None:
    device = Device().warm(5)
    device.slowness = 50.0
    device.warm(1)
    device.slowness = 1.0
    assert steps_and_depth(device.block(2.5 * WHOLE)) == what_fits(2.5 * WHOLE)


def test_steady_blocks_seldom_overshoot() -> None:
    device = Device().warm(16)
    seconds = FORWARD + 1 + STEP + 1.0  # a second more than the first layer needs, and one less than the second
    blocks = [device.block(seconds) for _ in range(200)]
    late = [work for work in blocks if work.seconds > seconds]
    assert len(late) <= 10
    assert all(work.depth in {1, 2} for work in blocks)


def test_models_do_not_learn_from_each_other() -> None:
    known, other = Device().warm(), Device()
    assert known.block(FORWARD).depth == 0
    other.slowness = known.slowness = 0.01
    assert known.block(FORWARD).depth == 0
    assert other.block(FORWARD).steps > 10


def test_clocks_do_not_learn_from_each_other() -> None:
    device = Device().warm()
    assert device.block(2.0).depth == 0
    milliseconds = Clock()
    work = device.block(2.0, steps=5, clock=milliseconds)
    assert (work.steps, work.interrupted) == (5, False)


def test_a_clock_may_be_a_bound_method() -> None:
    device = Device()
    assert device.block(1e6, steps=2, clock=device.clock.__call__).steps == 2
    seconds = FORWARD + 2.75
    assert device.block(seconds, clock=device.clock.__call__).seconds <= seconds


def test_evaluation_in_the_loop_is_not_taken_for_training() -> None:
    device = Device()
    with deadline(device.task.model, device.optimizer, 1e6, clock=device.clock):
        for step in range(5):
            train(device.task, device.optimizer, 1, first=step)
            with torch.no_grad():
                device.task.loss(step)
            device.clock.advance(1000)
    seconds = WHOLE + FORWARD + 1 + STEP
    assert steps_and_depth(device.block(seconds)) == (1, 1)


class Accelerator:
    """A device that is given work and does it later: time passes when it is waited for."""

    def __init__(self) -> None:
        self.clock, self.queued, self.waits = Clock(), 0.0, 0

    def queue(self, seconds: float) -> None:
        self.queued += seconds

    def synchronize(self, device: torch.device) -> None:
        assert device.type == "cuda"
        self.waits += 1
        self.clock.advance(self.queued)
        self.queued = 0.0


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    fake = Accelerator()
    monkeypatch.setattr(torch.accelerator, "synchronize", fake.synchronize)
    monkeypatch.setattr(
        "salf.client.deadline_block.Stopwatch",
        lambda clock, seconds, device: Stopwatch(clock, seconds, torch.device("cuda")),
    )
    return fake


def queued_task(accelerator: Accelerator) -> tuple[nn.Module, Task, SGD]:
    task = TASKS["mlp"]()
    take_time(task.model, find_layers(task.model), accelerator.queue, forward=1, backward=1)
    return task.model, task, SGD(task.model.parameters(), lr=0.1)


def test_the_time_is_the_devices_not_the_queues(accelerator: Accelerator) -> None:
    model, task, optimizer = queued_task(accelerator)
    with deadline(model, optimizer, 4 + 1 + 2, clock=accelerator.clock) as work:
        train(task, optimizer)
    assert list(work.layer_steps.values()) == [1, 2, 2]
    assert work.seconds == 7
    with deadline(model, optimizer, 100, clock=accelerator.clock) as work:
        train(task, optimizer, steps=5)
    assert (work.seconds, work.interrupted) == (20, False)


def test_far_from_the_deadline_the_device_is_not_waited_for(accelerator: Accelerator) -> None:
    model, task, optimizer = queued_task(accelerator)
    with deadline(model, optimizer, 1e6, clock=accelerator.clock):
        train(task, optimizer, steps=1)
    accelerator.waits = 0
    with deadline(model, optimizer, 100 * 4 + 1 + 1, clock=accelerator.clock) as work:
        train(task, optimizer, steps=90)
        assert accelerator.waits <= 92  # once a pass, and once at the beginning
        train(task, optimizer, first=90)
    assert list(work.layer_steps.values()) == [100, 100, 101]
    assert work.seconds == 402


def test_a_device_that_is_now_and_then_slower_than_foreseen_learns_to_keep_time_in_hand() -> None:
    device, ratios = Device().warm(), []
    slow_step = device.optimizer.register_step_post_hook
    turns = count()
    slow_step(lambda *_: device.spend(STEP if next(turns) % 4 == 0 else 0.0))
    for _ in range(400):
        work = device.block(FORWARD + BACKWARD["fc3"] + BACKWARD["fc2"] + STEP + 0.1)
        ratios.append(work.seconds / 5.6)
    assert sum(ratio > 1 for ratio in ratios[100:]) <= 0.06 * 300
    assert max(ratios) > 1  # it had something to learn


def test_blocks_that_try_their_first_layer_are_seldom_late_for_it() -> None:
    device, passes = Device().warm(), count()
    device.task.model.register_forward_hook(lambda *_: device.spend(0.1 * (next(passes) % 5)))
    seconds = FORWARD + BACKWARD["fc3"] + STEP + 0.05  # enough for the first layer in one pass of five
    blocks = [device.block(seconds) for _ in range(400)]
    late = [work.seconds > seconds for work in blocks]
    assert any(late)  # there was something to learn
    assert sum(late[100:]) <= 0.06 * 300
    assert sum(work.depth for work in blocks[100:]) > 0  # and it keeps trying


@pytest.mark.parametrize("stall", [1e3, 1e6])
def test_one_long_stall_is_soon_forgotten(stall: float) -> None:
    device = Device().warm()
    stalled = device.optimizer.register_step_pre_hook(lambda *_: device.clock.advance(stall))
    device.block(7.0)
    stalled.remove()
    depths = [device.block(7.0).depth for _ in range(60)]
    assert depths[-1] == what_fits(7.0)[1]


@pytest.mark.parametrize("slowness", [1.5, 3.0, 10.0])
@pytest.mark.parametrize("spell", [10, 50, 400])
def test_a_device_that_was_slow_for_a_while_is_soon_tried_again(slowness: float, spell: int) -> None:
    device, seconds = Device().warm(), FORWARD + BACKWARD["fc3"] + STEP + 0.5
    for _ in range(5):
        device.block(seconds)
    device.slowness = slowness
    for _ in range(spell):
        device.block(seconds)
    device.slowness = 1.0
    depths = [device.block(seconds).depth for _ in range(120)]
    assert next(index for index, depth in enumerate(depths) if depth) <= 100
    assert sum(depths[100:]) > 0
