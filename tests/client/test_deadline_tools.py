"""The block among the other tools of a training loop: scalers, checkpointing, parameter groups, schedules."""

from collections.abc import Callable

import pytest
import torch
from networks import Task, backward, mlp_task, parameters_of, same, train
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR
from torch.utils.checkpoint import checkpoint
from virtual_time import Clock, take_time

from salf.client.deadline_block import deadline
from salf.layers.find import find_layers
from salf.update import check_update

# With the network of three layers a step takes 4 seconds: one for the forward pass and one for each layer.
STEP = 4
every_depth = pytest.mark.parametrize("depth", [0, 1, 2, 3])


def timed_task() -> tuple[Task, Clock]:
    task, clock = mlp_task(), Clock()
    take_time(task.model, find_layers(task.model), clock.advance)
    return task, clock


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def forget_all_but_last(model: nn.Module, depth: int) -> None:
    layers = find_layers(model)
    for layer in layers[: len(layers) - depth]:
        for name in layer.parameters:
            model.get_parameter(name).grad = None


def train_scaled(task: Task, optimizer: Optimizer, scaler: GradScaler, steps: int = 100, first: int = 0) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        backward(scaler.scale(task.loss(step)))
        scaler.step(optimizer)
        scaler.update()


SCALED: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": sgd,
    "adam": lambda model: Adam(model.parameters(), lr=0.1),
    "fused sgd": lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True),
    "fused adamw": lambda model: AdamW(model.parameters(), lr=0.1, fused=True),
}
every_scaled = pytest.mark.parametrize("make", SCALED.values(), ids=SCALED.keys())


def new_scaler() -> GradScaler:
    return GradScaler("cpu", init_scale=2.0**10, growth_interval=2)


@every_scaled
@every_depth
def test_the_last_step_goes_through_the_scaler(make: Callable[[nn.Module], Optimizer], depth: int) -> None:
    (task, clock), twin = timed_task(), mlp_task()
    optimizer, naive = make(task.model), make(twin.model)
    scaler, naive_scaler = new_scaler(), new_scaler()
    with deadline(task.model, optimizer, STEP + 1 + depth, clock=clock, scaler=scaler) as work:
        train_scaled(task, optimizer, scaler)
    assert list(work.layer_steps.values()) == [1] * (3 - depth) + [2] * depth

    train_scaled(twin, naive, naive_scaler, steps=1)
    if depth:
        naive.zero_grad()
        backward(naive_scaler.scale(twin.loss(1)))
        forget_all_but_last(twin.model, depth)
        naive_scaler.step(naive)
        naive_scaler.update()
    assert same(parameters_of(task.model), parameters_of(twin.model))
    assert scaler.state_dict() == naive_scaler.state_dict()

    train_scaled(task, optimizer, scaler, steps=3)
    train_scaled(twin, naive, naive_scaler, steps=3)
    assert same(parameters_of(task.model), parameters_of(twin.model))


def poisoned(task: Task, step: int) -> Task:
    """One of the task's batches holds an infinite value, so that its gradients are not finite."""
    inputs, labels = task.batches[step]
    batches = list(task.batches)
    batches[step] = (inputs.clone().index_fill(0, torch.tensor([0]), float("inf")), labels)
    return Task(task.model, tuple(batches))


@every_scaled
@pytest.mark.parametrize("depth", [1, 2])
def test_an_interrupted_pass_that_overflowed_sends_nothing(make: Callable[[nn.Module], Optimizer], depth: int) -> None:
    task, clock = timed_task()
    task = poisoned(task, 1)
    optimizer, scaler = make(task.model), new_scaler()
    twin = mlp_task()
    with deadline(task.model, optimizer, STEP + 1 + depth, clock=clock, scaler=scaler) as work:
        train_scaled(task, optimizer, scaler)
    train_scaled(twin, make(twin.model), new_scaler(), steps=1)
    assert work.interrupted
    assert work.layer_steps == {"fc1": 1, "fc2": 1, "fc3": 1}
    assert same(parameters_of(task.model), parameters_of(twin.model))
    assert scaler.get_scale() == 2.0**9
    train_scaled(task, optimizer, scaler, steps=1, first=2)
    assert not same(parameters_of(task.model), parameters_of(twin.model))


@every_scaled
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_step_that_the_scaler_skips_does_not_count(make: Callable[[nn.Module], Optimizer], set_to_none: bool) -> None:
    task, clock = timed_task()
    task = poisoned(task, 1)
    optimizer, scaler = make(task.model), new_scaler()
    with deadline(task.model, optimizer, 3 * STEP + 3, clock=clock, scaler=scaler) as work:
        for step in range(100):
            optimizer.zero_grad(set_to_none=set_to_none)
            backward(scaler.scale(task.loss(step)))
            scaler.step(optimizer)
            scaler.update()
    assert work.steps == 2
    assert work.layer_steps == {"fc1": 2, "fc2": 3, "fc3": 3}
    assert all(torch.isfinite(delta).all() for delta in work.update(1).deltas.values())


@every_scaled
def test_a_block_whose_every_step_overflows_sends_nothing(make: Callable[[nn.Module], Optimizer]) -> None:
    task, clock = timed_task()
    task = poisoned(task, 0)
    optimizer, scaler, before = make(task.model), new_scaler(), parameters_of(task.model)
    with deadline(task.model, optimizer, 100, clock=clock, scaler=scaler) as work:
        train_scaled(task, optimizer, scaler, steps=1)
    assert (work.steps, work.depth) == (0, 0)
    assert not work.update(1).deltas
    assert same(parameters_of(task.model), before)


def test_a_scaler_that_is_switched_off_changes_nothing() -> None:
    (task, clock), (twin, other) = timed_task(), timed_task()
    optimizer, naive, scaler = sgd(task.model), sgd(twin.model), GradScaler("cpu", enabled=False)
    with deadline(task.model, optimizer, STEP + 2, clock=clock, scaler=scaler) as work:
        train_scaled(task, optimizer, scaler)
    with deadline(twin.model, naive, STEP + 2, clock=other):
        train(twin, naive)
    assert list(work.layer_steps.values()) == [1, 1, 2]
    assert same(parameters_of(task.model), parameters_of(twin.model))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.lower = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
        self.upper = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.head = nn.Linear(6, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part in (self.lower, self.upper):
            x = part(x) if self.reentrant is None else checkpoint(part, x, use_reentrant=self.reentrant)
        scores: Tensor = self.head(x)
        return scores


@pytest.mark.parametrize("reentrant", [False, True], ids=["graph", "reentrant"])
@pytest.mark.parametrize("depth", range(7))
@pytest.mark.parametrize("forward", [1, 20])
@pytest.mark.parametrize("warm", [False, True])
def test_checkpointed_activations(reentrant: bool, depth: int, forward: int, warm: bool) -> None:
    batches = mlp_task((6, 3)).batches
    task, twin, clock = Task(Checkpointed(reentrant), batches), Task(Checkpointed(None), batches), Clock()
    twin.model.load_state_dict(task.model.state_dict())
    optimizer, naive = sgd(task.model), sgd(twin.model)
    layers = find_layers(task.model, task.example)
    assert layers.names == ("stem", "lower.0", "lower.1", "upper.0", "upper.2", "head")
    take_time(task.model, layers, clock.advance, forward=forward)
    if warm:
        with deadline(task.model, optimizer, 100, clock=clock):
            train(task, optimizer, steps=2)
        train(twin, naive, steps=2)
    with deadline(task.model, optimizer, forward + depth + 0.5, clock=clock) as work:
        train(task, optimizer)
    # A layer that was under way when the time was up is completed, unless that could be foreseen.
    depth = depth if warm else min(depth + 1, 6)
    assert (work.depth, work.interrupted) == (depth, True)
    if depth:
        naive.zero_grad()
        backward(twin.loss())
        forget_all_but_last(twin.model, depth)
        naive.step()
    assert same(parameters_of(task.model), parameters_of(twin.model))


def test_parameter_groups_keep_their_settings() -> None:
    (task, clock), twin = timed_task(), mlp_task()

    def grouped(model: nn.Module) -> Optimizer:
        weights = [value for name, value in model.named_parameters() if name.endswith("weight")]
        biases = [value for name, value in model.named_parameters() if name.endswith("bias")]
        return AdamW([{"params": weights, "weight_decay": 0.5}, {"params": biases, "lr": 0.5, "weight_decay": 0.0}])

    optimizer, naive = grouped(task.model), grouped(twin.model)
    with deadline(task.model, optimizer, STEP + 3, clock=clock) as work:
        train(task, optimizer)
    train(twin, naive, steps=1)
    naive.zero_grad()
    backward(twin.loss(1))
    forget_all_but_last(twin.model, 2)
    naive.step()
    assert list(work.layer_steps.values()) == [1, 2, 2]
    assert same(parameters_of(task.model), parameters_of(twin.model))


def test_an_optimizer_may_hold_part_of_the_model() -> None:
    task, clock = timed_task()
    before = parameters_of(task.model)
    held = [name for name in before if name != "fc3.bias" and not name.startswith("fc1")]
    optimizer = SGD([task.model.get_parameter(name) for name in held], lr=0.1, momentum=0.9)
    with deadline(task.model, optimizer, STEP + 3, clock=clock) as work:
        train(task, optimizer)
    # Nothing that this optimizer holds lies below fc2, so that its steps are whole. What it trains of fc3 is sent.
    assert work.layer_steps == {"fc1": 0, "fc2": 2, "fc3": 2}
    assert (work.depth, work.steps, work.interrupted) == (2, 2, True)
    assert work.update(1).deltas.keys() == {"fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"}
    after = parameters_of(task.model)
    assert {name for name in before if torch.equal(before[name], after[name])} == {"fc1.weight", "fc1.bias", "fc3.bias"}


def test_an_optimizer_may_hold_more_than_the_model() -> None:
    (task, clock), other = timed_task(), nn.Parameter(torch.ones(2))
    optimizer = SGD([*task.model.parameters(), other], lr=0.1)
    with deadline(task.model, optimizer, STEP + 2, clock=clock) as work:
        for step in range(100):
            optimizer.zero_grad()
            backward(task.loss(step) + other.sum())
            optimizer.step()
    assert list(work.layer_steps.values()) == [1, 1, 2]
    assert "fc3.bias" in work.update(1).deltas
    assert len(work.update(1).deltas) == 6


@every_depth
def test_learning_rate_schedules_go_on(depth: int) -> None:
    (task, clock), twin = timed_task(), mlp_task()

    def loop(task: Task, optimizer: Optimizer, schedule: LRScheduler, steps: int = 100) -> None:
        for step in range(steps):
            train(task, optimizer, steps=1, first=step)
            schedule.step()

    optimizer, naive = sgd(task.model), sgd(twin.model)
    schedule, naive_schedule = StepLR(optimizer, 1, gamma=0.5), StepLR(naive, 1, gamma=0.5)
    with deadline(task.model, optimizer, 2 * STEP + 1 + depth, clock=clock) as work:
        loop(task, optimizer, schedule)
    steps = 3 if depth == 3 else 2
    assert work.steps == steps
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**steps
    loop(twin, naive, naive_schedule, steps=2)
    naive.zero_grad()
    backward(twin.loss(2))
    forget_all_but_last(twin.model, depth)
    naive.step()
    assert same(parameters_of(task.model), parameters_of(twin.model))
    schedule.step()


@pytest.mark.parametrize(("seconds", "depth"), [(2, 1), (3, 2)])
def test_sparse_gradients(seconds: float, depth: int) -> None:
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(8, 2))
    clock, optimizer = Clock(), SGD(model.parameters(), lr=0.1)
    before = parameters_of(model)
    take_time(model, find_layers(model), clock.advance)
    with deadline(model, optimizer, seconds, clock=clock) as work:
        for _ in range(10):
            optimizer.zero_grad()
            backward(model(torch.tensor([[0, 3], [3, 4]])).square().sum())
            optimizer.step()
    assert work.depth == depth
    deltas = work.update(1).deltas
    check_update(work.update(1), find_layers(model), model.state_dict())
    if depth == 2:
        changed = (model.get_parameter("0.weight") != before["0.weight"]).any(1)
        assert changed.tolist() == [True, False, False, True, True]
        assert deltas["0.weight"].any(1).tolist() == changed.tolist()
    else:
        assert torch.equal(model.get_parameter("0.weight"), before["0.weight"])


def test_a_buffer_that_two_modules_share_travels_once() -> None:
    task = mlp_task()
    shared = torch.ones(2)
    for name in ("fc1", "fc2"):
        task.model.get_submodule(name).register_buffer("scale", shared)
    optimizer = sgd(task.model)
    layers = find_layers(task.model)
    with deadline(task.model, optimizer, 1, clock=Clock()) as work:
        train(task, optimizer, steps=1)
    assert layers.aliases == {"fc2.scale": "fc1.scale"}
    assert list(work.update(1).buffers) == ["fc1.scale"]
    check_update(work.update(1), layers, task.model.state_dict())
