"""Every optimizer works: also wrappers, two-step ones, and those that step inside the backward pass."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import Task, backward, mlp_task, parameters_of, same
from torch import Tensor, nn, optim
from torch.optim import SGD, Adam, Optimizer
from virtual_time import Clock, take_time
from works_with import Make, cut, leaves_no_trace, step

from salf.client import deadline
from salf.errors import UnsuitableModel
from salf.layers import find_layers

OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda model: SGD(model.parameters(), lr=0.1),
    "SGD with momentum and decay": lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
    "SGD with Nesterov's momentum": lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda model: Adam(model.parameters(), lr=0.01),
    "Adam, foreach": lambda model: Adam(model.parameters(), lr=0.01, foreach=True),
    "Adam, fused": lambda model: Adam(model.parameters(), lr=0.01, fused=True),
    "AMSGrad": lambda model: Adam(model.parameters(), lr=0.01, amsgrad=True),
    "AdamW": lambda model: optim.AdamW(model.parameters(), lr=0.01),
    "RMSprop": lambda model: optim.RMSprop(model.parameters(), lr=0.01, momentum=0.5),
    "Adagrad": lambda model: optim.Adagrad(model.parameters(), lr=0.05),
    "Adadelta": lambda model: optim.Adadelta(model.parameters()),
    "Adamax": lambda model: optim.Adamax(model.parameters(), lr=0.01),
    "NAdam": lambda model: optim.NAdam(model.parameters(), lr=0.01),
    "RAdam": lambda model: optim.RAdam(model.parameters(), lr=0.01),
    "ASGD": lambda model: optim.ASGD(model.parameters(), lr=0.05),
    "Rprop": lambda model: optim.Rprop(model.parameters(), lr=0.01),
    "Adafactor": lambda model: optim.Adafactor(model.parameters(), lr=0.01),
    "parameter groups": lambda model: SGD(
        [{"params": [value], "lr": 0.01 * place} for place, value in enumerate(model.parameters(), 1)]
    ),
    "Lookahead": lambda model: Lookahead(SGD(model.parameters(), lr=0.1, momentum=0.9)),
}


class Lookahead(Optimizer):
    """As it is commonly written: it does not call `Optimizer.__init__`."""

    def __init__(self, base: Optimizer, every: int = 2) -> None:
        self.base, self.every, self.taken = base, every, 0
        self.param_groups, self.defaults, self.state = base.param_groups, base.defaults, defaultdict(dict)
        self.slow = {value: value.detach().clone() for group in self.param_groups for value in group["params"]}

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.base.step(closure)
        self.taken += 1
        if self.taken % self.every == 0:
            for value, slow in self.slow.items():
                value.data.copy_(slow.add_(value.detach() - slow, alpha=0.5))


@pytest.mark.parametrize("returns", [False, True], ids=["left", "returns"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_an_optimizer_steps_over_the_finished_layers_only(make: Make, returns: bool) -> None:
    if not (returns and make is OPTIMIZERS["Lookahead"]):  # seen from the loop, its slow weights move after the step
        cut(mlp_task(), make, steps=2, depth=2, returns=returns)


def test_sparse_gradients() -> None:
    class Words(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.EmbeddingBag(7, 4, sparse=True, mode="sum"))

    torch.manual_seed(0)
    task = Task(Words(), tuple((torch.randint(7, (3, 5)), torch.randint(4, (3,))) for _ in range(4)))
    twin, clock = task.twin(), Clock()
    optimizer, naive = (optim.SparseAdam([*model.parameters()], lr=0.1) for model in (task.model, twin.model))
    with deadline(task.model, optimizer, 10.0, clock=clock) as work:
        for number in range(5):
            clock.advance(3)
            step(task, optimizer, number)
    for number in range(work.steps):
        step(twin, naive, number)
    assert work.steps == 3
    assert same(parameters_of(task.model), parameters_of(twin.model))
    assert work.update(3).deltas["0.weight"].layout is torch.strided


def timed_task() -> tuple[Task, Clock]:
    task, clock = mlp_task(), Clock()
    take_time(task.model, find_layers(task.model), clock.advance)
    return task, clock


class Sam(Optimizer):
    """Sharpness-aware minimization as it is commonly written, in two steps around a second backward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.base = SGD(model.parameters(), lr=0.1)
        super().__init__(model.parameters(), {"rho": 0.5})
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is not None:
                    self.state[value]["old"] = value.data.clone()
                    value.add_(0.5 * value.grad)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is not None:
                    value.data = self.state[value]["old"]
        self.base.step()
        self.zero_grad()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is not None, "Sharpness Aware Minimization requires closure, but it was not provided"


def sam_loop(task: Task, optimizer: Sam, numbers: Any) -> None:
    for number in numbers:
        backward(task.loss(number))
        optimizer.first_step()
        backward(task.loss(number))
        optimizer.second_step()


@pytest.mark.filterwarnings("ignore:salf. the step of Sam after the deadline failed")
@pytest.mark.parametrize("returns", [False, True], ids=["left", "returns"])
@pytest.mark.parametrize("seconds", range(1, 25))
def test_a_block_never_ends_between_the_two_steps_of_sam(seconds: int, returns: bool) -> None:
    task, clock = timed_task()
    optimizer = Sam(task.model)
    with deadline(task.model, optimizer, seconds, clock=clock) as work:
        sam_loop(task, optimizer, work.batches(range(99)) if returns else range(99))
    twin = mlp_task()
    sam_loop(twin, Sam(twin.model), range(work.steps))
    if len({*work.layer_steps.values()}) == 1 and work.layer_steps["fc1"] == work.steps:
        assert same(parameters_of(task.model), parameters_of(twin.model))
    assert work.seconds <= seconds + 8  # it waits for the step in progress at most
    assert leaves_no_trace(task.model)


def test_the_last_step_of_an_optimizer_that_refuses_it_is_lost_with_a_warning() -> None:
    task, clock = timed_task()
    optimizer = Sam(task.model)

    def loop() -> None:
        for number in range(99):
            optimizer.zero_grad()
            backward(task.loss(number))
            optimizer.base.step()

    block = deadline(task.model, optimizer, 4 + 3, clock=clock)
    with pytest.warns(UserWarning, match="step of Sam after the deadline failed .AssertionError"), block as work:
        loop()
    assert [*work.layer_steps.values()] == [1, 1, 1]


@pytest.mark.parametrize("returns", [False, True], ids=["left", "returns"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_optimizers_that_step_inside_the_backward_pass(depth: int, returns: bool) -> None:
    task, clock = timed_task()
    twin = mlp_task()
    optimizers = {value: SGD([value], lr=0.1) for value in task.model.parameters()}

    def step_at_once(value: Tensor) -> None:
        optimizers[value].step()  # type: ignore[index]
        value.grad = None

    handles = [value.register_post_accumulate_grad_hook(step_at_once) for value in task.model.parameters()]  # type: ignore[no-untyped-call]
    with deadline(task.model, seconds=2 * 4 + 1 + depth, clock=clock) as work:
        for number in work.batches(range(99)) if returns else range(99):
            backward(task.loss(number))
    naive = SGD(twin.model.parameters(), lr=0.1)
    for number in range(2 + (depth > 0)):
        naive.zero_grad()
        backward(twin.loss(number))
        for layer in find_layers(twin.model)[: 3 - depth] if number == 2 else ():
            for name in layer.parameters:
                twin.model.get_parameter(name).grad = None
        naive.step()
    assert (work.steps, list(work.layer_steps.values())) == (2, [2] * (3 - depth) + [3] * depth)
    assert same(parameters_of(task.model), parameters_of(twin.model))
    for handle in handles:
        handle.remove()


class ScheduleFree(Optimizer):
    """SGD without a schedule, in short: steps in train mode, and sends the average in eval mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {"lr": 0.1})
        self.values = [*model.parameters()]
        self.z, self.x = ([value.detach().clone() for value in self.values] for _ in range(2))
        self.is_training, self.taken = False, 0

    def _show(self, share: float) -> None:
        for value, z, x in zip(self.values, self.z, self.x, strict=True):
            value.data.copy_(torch.lerp(z, x, share))

    def train(self) -> None:
        self.is_training = True
        self._show(0.9)

    def eval(self) -> None:
        self.is_training = False
        self._show(1.0)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if not self.is_training:
            raise RuntimeError("Optimizer was not in train mode when step is called")
        self.taken += 1
        for place, value in enumerate(self.values):
            if value.grad is not None:
                self.z[place] -= 0.1 * value.grad
                self.x[place] += (self.z[place] - self.x[place]) / self.taken
        self._show(0.9)


def test_a_schedule_free_optimizer_is_put_into_eval_mode_by_a_function_that_returns() -> None:
    task, clock = timed_task()

    def train(loader: Any) -> None:
        optimizer = ScheduleFree(task.model)
        optimizer.train()
        for number in loader:
            optimizer.zero_grad()
            backward(task.loss(number))
            optimizer.step()
        optimizer.eval()
        made.append(optimizer)

    made: list[ScheduleFree] = []
    before = parameters_of(task.model)
    with deadline(task.model, seconds=2 * 4 + 2, clock=clock) as work:
        train(work.batches(range(99)))
    update = work.update(3)
    for (name, value), x in zip(task.model.named_parameters(), made[0].x, strict=True):
        assert torch.equal(value, x)
        assert torch.equal(update.deltas[name], x - before[name])


def test_two_optimizers_of_one_model() -> None:
    (task, clock), twin = timed_task(), mlp_task()

    def both(model: nn.Module) -> tuple[Optimizer, ...]:
        head = [value for name, value in model.named_parameters() if name.startswith("fc3")]
        body = [value for name, value in model.named_parameters() if not name.startswith("fc3")]
        return SGD(head, lr=0.5), Adam(body, lr=0.01)

    def loop(task: Task, optimizers: tuple[Optimizer, ...], numbers: Any, unfinished: int = 0) -> None:
        for number in numbers:
            for optimizer in optimizers:
                optimizer.zero_grad()
            backward(task.loss(number))
            for layer in find_layers(task.model)[:unfinished]:
                for name in layer.parameters:
                    task.model.get_parameter(name).grad = None
            for optimizer in optimizers:
                optimizer.step()

    with deadline(task.model, seconds=2 * 4 + 3, clock=clock) as work:
        loop(task, both(task.model), work.batches(range(99)))
    optimizers = both(twin.model)
    loop(twin, optimizers, range(2))
    loop(twin, optimizers, [2], unfinished=1)
    assert (work.steps, work.layer_steps) == (2, {"fc1": 2, "fc2": 3, "fc3": 3})
    assert same(parameters_of(task.model), parameters_of(twin.model))


def test_lbfgs_is_refused_by_name() -> None:
    model = mlp_task().model
    with pytest.raises(UnsuitableModel, match=r"LBFGS\.step needs a closure"):
        deadline(model, optim.LBFGS(model.parameters()), 1.0)


def test_weights_that_change_without_an_optimizer_are_reported() -> None:
    task, clock = timed_task()

    def loop() -> None:
        for number in range(3):
            backward(task.loss(number))
            with torch.no_grad():
                for value in task.model.parameters():
                    assert value.grad is not None
                    value.sub_(0.1 * value.grad)
                    value.grad = None

    block = deadline(task.model, seconds=99, clock=clock)
    with pytest.warns(UserWarning, match="without a step of a torch optimizer"), block as work:
        loop()
    assert work.depth == 0


@pytest.mark.parametrize("wrapper", [object, list, lambda: SGD])
def test_what_is_no_optimizer_is_refused_and_leaves_nothing(wrapper: Callable[[], object]) -> None:
    model = mlp_task().model
    with pytest.raises((UnsuitableModel, ValueError, TypeError), match="optimizer"):
        deadline(model, wrapper(), 1.0)  # type: ignore[arg-type]
    assert leaves_no_trace(model)
