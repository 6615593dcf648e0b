"""Compiled and wrapped models, mixed precision, and private training."""

import copy
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from networks import TASKS, Task, backward, mlp_task, parameters_of, same
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, prune
from torch.optim import SGD
from virtual_time import Clock, on_gradient, take_time
from works_with import cut, leaves_no_trace

from salf.client import deadline
from salf.errors import UnsuitableModel
from salf.layers import find_layers
from salf.update import check_update

forms = pytest.mark.parametrize("returns", [False, True], ids=["left", "returns"])


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


@forms
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_model_of_another_precision(dtype: torch.dtype, returns: bool) -> None:
    task = mlp_task()
    task = Task(task.model.to(dtype), tuple((inputs.to(dtype), labels) for inputs, labels in task.batches))
    work = cut(task, sgd, steps=2, depth=2, returns=returns)
    assert work.update(3).deltas["fc3.bias"].dtype == dtype
    state = {name: value.float() for name, value in task.model.state_dict().items()}
    check_update(work.update(3), find_layers(task.model), state)  # a server in single precision accepts it


def timed(task: Task) -> Clock:
    clock = Clock()
    take_time(task.model, find_layers(task.model), clock.advance)
    return clock


def scaled_loop(task: Task, optimizer: SGD, scaler: Any, numbers: Any, group: int, unfinished: int = 0) -> None:
    for number in numbers:
        with torch.autocast("cpu", torch.bfloat16):
            loss = task.loss(number) / group
        backward(scaler.scale(loss))
        if (number + 1) % group == 0:
            for layer in find_layers(task.model)[:unfinished]:
                for name in layer.parameters:
                    task.model.get_parameter(name).grad = None
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


@forms
@pytest.mark.parametrize("depth", [1, 2])
def test_autocast_with_a_gradient_scaler(depth: int, returns: bool) -> None:
    task, twin = mlp_task(), mlp_task()
    clock, scalers = timed(task), [torch.amp.GradScaler("cpu", init_scale=256.0) for _ in range(2)]
    optimizer = sgd(task.model)
    given: dict[str, Any] = {"optimizer": None} if returns else {"optimizer": optimizer, "scaler": scalers[0]}
    with deadline(task.model, seconds=2 * 4 + 1 + depth, clock=clock, **given) as work:
        scaled_loop(task, optimizer, scalers[0], work.batches(range(99)) if returns else range(99), 1)
    naive = sgd(twin.model)
    scaled_loop(twin, naive, scalers[1], range(2), 1)
    scaled_loop(twin, naive, scalers[1], [2], 1, unfinished=3 - depth)
    assert list(work.layer_steps.values()) == [2] * (3 - depth) + [3] * depth
    assert same(parameters_of(task.model), parameters_of(twin.model))
    assert scalers[0].state_dict() == scalers[1].state_dict()


@forms
def test_a_gradient_scaler_with_accumulation(returns: bool) -> None:
    task = mlp_task()
    clock, scaler, optimizer = timed(task), torch.amp.GradScaler("cpu", init_scale=256.0), sgd(task.model)
    before = parameters_of(task.model)
    with deadline(task.model, optimizer, 3 * 4 + 1, clock=clock, accumulate=8, scaler=scaler) as work:
        scaled_loop(task, optimizer, scaler, work.batches(range(99)) if returns else range(99), 8)
    assert set(work.layer_passes.values()) == {3}
    twin = mlp_task()
    for number in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = twin.loss(number) / 3
        backward(loss)
    for name, value in parameters_of(task.model).items():
        gradient = twin.model.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(value, before[name] - 0.1 * gradient, rtol=1e-2, atol=1e-4)


COMPILED: dict[str, Callable[[Any], Any]] = {
    "torch.compile(model)": lambda model: torch.compile(model, backend="aot_eager"),
    "model.compile()": lambda model: model.compile(backend="aot_eager") or model,
}


@forms
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", COMPILED)
def test_a_compiled_model_keeps_whole_steps_and_is_not_compiled_again(how: str, returns: bool) -> None:
    torch._dynamo.reset()
    task, twin = mlp_task(), mlp_task()
    model: Any = COMPILED[how](task.model)
    clock, optimizer, naive, number = Clock(), sgd(task.model), sgd(twin.model), 0

    def run(steps: Any) -> None:
        nonlocal number
        for _ in steps:
            inputs, labels = task.batches[number % 4]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            clock.advance(3.0)
            backward(loss)
            clock.advance(1.0)
            number += 1
            optimizer.step()

    run(range(1))
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(range(1))
        for seconds, steps in ((100, 5), (9, 2), (9, 2), (3, 0)):
            with deadline(model, None if returns else optimizer, seconds, clock=clock) as work:
                run(work.batches(range(5)) if returns else range(5))
            assert work.steps >= steps
            assert {*work.layer_steps.values()} == {work.steps}
            assert work.seconds <= seconds + 4
            check_update(work.update(5), find_layers(twin.model), twin.model.state_dict())
    for step in range(number):
        naive.zero_grad()
        backward(twin.loss(step))
        naive.step()
    for name, value in parameters_of(task.model).items():
        torch.testing.assert_close(value, twin.model.get_parameter(name))
    assert leaves_no_trace(task.model)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@forms
@pytest.mark.filterwarnings("ignore")
def test_distributed_data_parallel_in_one_process(one_process: None, returns: bool) -> None:
    task, twin = mlp_task(), mlp_task()
    clock = timed(task)
    model, optimizer, naive, number = DistributedDataParallel(task.model), sgd(task.model), sgd(twin.model), 0
    for seconds in (9.0, 14.0, 3.0, 100.0):
        with deadline(model, None if returns else optimizer, seconds, clock=clock) as work:
            for _ in work.batches(range(6)) if returns else range(6):
                inputs, labels = task.batches[number % 4]
                optimizer.zero_grad()
                backward(nn.functional.cross_entropy(model(inputs), labels))
                number += 1
                optimizer.step()
        assert {*work.layer_steps.values()} == {work.steps}
        check_update(work.update(5), find_layers(twin.model), twin.model.state_dict())
    for step in range(number):
        naive.zero_grad()
        backward(twin.loss(step))
        naive.step()
    for name, value in parameters_of(task.model).items():
        torch.testing.assert_close(value, twin.model.get_parameter(name))


@pytest.mark.filterwarnings("ignore")
def test_distributed_data_parallel_over_several_processes_is_refused(
    one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DistributedDataParallel(mlp_task().model)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
    with pytest.raises(UnsuitableModel, match="DistributedDataParallel spans several processes"):
        deadline(model, sgd(model), 1.0)


def pruned() -> nn.Module:
    model = mlp_task().model
    for name in ("fc1", "fc2", "fc3"):
        prune.l1_unstructured(model.get_submodule(name), "weight", amount=0.5)  # type: ignore[no-untyped-call]
    return model


def normalised(*, new: bool) -> nn.Module:
    model = mlp_task().model
    apply: Callable[[nn.Module], object] = parametrizations.weight_norm if new else nn.utils.weight_norm
    for name in ("fc1", "fc2"):
        apply(model.get_submodule(name))
    return model


REPARAMETRIZED = {
    "pruned": pruned,
    "weight_norm": lambda: normalised(new=True),
    "old weight_norm": lambda: normalised(new=False),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", REPARAMETRIZED)
def test_weights_that_are_computed_from_others(name: str) -> None:
    make: Callable[[], nn.Module] = REPARAMETRIZED[name]
    model, clock = make(), Clock()
    layers = find_layers(model, mlp_task().example, group=["fc1", "fc2", "fc3"])
    for layer in layers:
        on_gradient(model, layer.parameters[-1], lambda: clock.advance(1.0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = sgd(model)
    with deadline(model, optimizer, 5.5, layers=layers, clock=clock) as work:
        for inputs, labels in mlp_task().batches:
            optimizer.zero_grad()
            backward(nn.functional.cross_entropy(model(inputs), labels))
            optimizer.step()
    assert work.interrupted
    assert work.layer_steps["fc3"] >= work.layer_steps["fc1"] >= 1
    check_update(work.update(5), layers, before)


class DPOptimizer(SGD):
    """A stand-in with the name by which Opacus' is known; it counts steps over gradients that are not whole."""

    partial = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        values = [value for group in self.param_groups for value in group["params"]]
        self.partial += any(value.grad is None for value in values)
        super().step()


@forms
@pytest.mark.parametrize("seconds", [1.5, 2.5, 4.5, 6.5, 7.5, 9.0])
def test_private_training_steps_over_whole_gradients_only(seconds: float, returns: bool) -> None:
    task = mlp_task()
    clock, optimizer = timed(task), DPOptimizer(task.model.parameters(), lr=0.1)
    with deadline(task.model, optimizer, seconds, clock=clock) as work:
        for number in work.batches(range(99)) if returns else range(99):
            optimizer.zero_grad()
            backward(task.loss(number))
            optimizer.step()
    assert optimizer.partial == 0
    assert {*work.layer_steps.values()} == {work.steps}


@forms
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_private_training_with_opacus(returns: bool) -> None:
    opacus = pytest.importorskip("opacus", reason="Opacus is not installed: pip install opacus")
    task = mlp_task()
    clock = timed(task)
    data = torch.utils.data.TensorDataset(torch.randn(64, 6), torch.randint(3, (64,)))
    model, optimizer, loader = opacus.PrivacyEngine(accountant="rdp").make_private(
        module=task.model,
        optimizer=SGD(task.model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(data, batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    layers, initial = find_layers(model), copy.deepcopy(model.state_dict())
    with deadline(model, optimizer, 3 * 4 + 2.5, layers=layers, clock=clock) as work:
        for inputs, labels in work.batches(loader) if returns else loader:
            optimizer.zero_grad()
            backward(nn.functional.cross_entropy(model(inputs), labels))
            optimizer.step()
    assert work.interrupted
    assert {*work.layer_steps.values()} == {work.steps}
    check_update(work.update(64), layers, initial)
    for inputs, labels in loader:  # training goes on without salf
        optimizer.zero_grad()
        backward(nn.functional.cross_entropy(model(inputs), labels))
        optimizer.step()


@pytest.mark.slow
def test_a_schedule_free_optimizer_of_its_authors() -> None:
    schedulefree = pytest.importorskip("schedulefree", reason="schedulefree is not installed: pip install schedulefree")
    task = TASKS["mlp"]()
    clock, before = timed(task), parameters_of(task.model)
    shown: list[dict[str, Tensor]] = []

    def train(loader: Any) -> None:
        optimizer = schedulefree.AdamWScheduleFree(task.model.parameters(), lr=0.01)
        optimizer.train()
        for number in loader:
            optimizer.zero_grad()
            backward(task.loss(number))
            optimizer.step()
        optimizer.eval()
        shown.append(parameters_of(task.model))

    with deadline(task.model, seconds=2 * 4 + 3, clock=clock) as work:
        train(work.batches(range(99)))
    assert work.layer_steps == {"fc1": 2, "fc2": 3, "fc3": 3}
    assert all(torch.equal(delta, shown[0][name] - before[name]) for name, delta in work.update(5).deltas.items())
