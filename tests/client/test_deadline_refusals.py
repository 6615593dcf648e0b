"""What cannot work is refused at once, by a message that names it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import TASKS, mlp_task, parameters_of, same, train
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer
from torch.optim.lr_scheduler import StepLR
from virtual_time import Clock

from salf.client.deadline_block import deadline
from salf.errors import InvalidSetting, SalfError, UnsuitableModel
from salf.layers.find import Layer, Layers, find_layers

NUMBERS: list[Any] = [0, 0.0, -1, -0.5, math.nan, -math.inf, True, "2", [1.0], torch.tensor(1.0), 1j]


def arguments() -> dict[str, Any]:
    model = mlp_task().model
    return {"model": model, "optimizer": SGD(model.parameters(), lr=0.1), "seconds": 1.0}


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["seconds", "upload_bytes_per_second", "accumulate"])
def test_numbers_that_are_not_above_zero(name: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=f"^{name} is "):
        deadline(**{**arguments(), name: value})


def test_more_time_than_a_number_holds() -> None:
    with pytest.raises(InvalidSetting, match="seconds is 1000"):
        deadline(**{**arguments(), "seconds": 10**400})


def test_no_time_at_all() -> None:
    with pytest.raises(InvalidSetting, match="seconds is missing; pass the time to the deadline"):
        deadline(**{**arguments(), "seconds": None})


def test_a_fraction_of_a_pass() -> None:
    with pytest.raises(InvalidSetting, match="accumulate is of type float"):
        deadline(**arguments(), accumulate=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "resnet"),
        ("model", None),
        ("model", mlp_task().model.state_dict()),
        ("optimizer", "sgd"),
        ("optimizer", StepLR(SGD([torch.zeros(1)], lr=0.1), 1)),
        ("layers", ["fc1"]),
        ("layers", (Layer("fc1", ("fc1.weight",)),)),
        ("clock", 12.5),
        ("scaler", 1024.0),
        ("scaler", True),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_things_of_the_wrong_type(name: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=f"^{name} is of type .*; give "):
        deadline(**{**arguments(), name: value})


@pytest.mark.parametrize("scheduled", [False, True])
def test_an_optimizer_that_needs_a_closure(scheduled: bool) -> None:
    model = mlp_task().model
    optimizer = LBFGS(model.parameters())
    if scheduled:
        StepLR(optimizer, 1)
    with pytest.raises(UnsuitableModel, match=r"LBFGS\.step needs a closure"):
        deadline(model, optimizer, 1)


class ScaleOnly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


UNSUITABLE: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Optimizer], str]] = {
    "no parameters": (ScaleOnly, lambda _: SGD([torch.zeros(1)], lr=0.1), "it has no parameters"),
    "all frozen": (
        lambda: nn.Linear(2, 1).requires_grad_(False),
        lambda model: SGD(model.parameters(), lr=0.1),
        "every parameter is frozen",
    ),
    "no shape yet": (
        lambda: nn.Sequential(nn.LazyLinear(2)),
        lambda _: SGD([torch.zeros(1)], lr=0.1),
        "'0.weight' has no shape yet",
    ),
    "another model's optimizer": (
        lambda: nn.Linear(2, 1),
        lambda _: SGD(nn.Linear(2, 1).parameters(), lr=0.1),
        "the optimizer holds no trainable parameter of the model",
    ),
    "only frozen parameters held": (
        lambda: TASKS["lora"]().model,
        lambda model: SGD([value for value in model.parameters() if not value.requires_grad], lr=0.1),
        "the optimizer holds no trainable parameter of the model",
    ),
    "no layer held whole": (
        lambda: nn.Linear(2, 1),
        lambda model: SGD([model.get_parameter("bias")], lr=0.1),
        "the optimizer holds no whole layer of the model; pass all parameters of a layer to it",
    ),
}


@pytest.mark.parametrize(("make", "make_optimizer", "reason"), UNSUITABLE.values(), ids=UNSUITABLE.keys())
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_model_without_anything_to_train(
    make: Callable[[], nn.Module], make_optimizer: Callable[[nn.Module], Optimizer], reason: str
) -> None:
    model = make()
    with pytest.raises(UnsuitableModel, match=reason) as caught:
        deadline(model, make_optimizer(model), 1)
    assert str(caught.value).startswith(type(model).__name__)


def test_layers_of_another_model_are_refused_name_by_name() -> None:
    layers = Layers((Layer("fc1", ("fc1.weight", "fc1.scale"), ("fc1.mean",)), Layer("head", ("head.weight",))))
    with pytest.raises(UnsuitableModel) as caught:
        deadline(**arguments(), layers=layers)
    assert caught.value.problems == (
        "the layers name 'fc1.scale', which is no parameter of the model; use salf.find_layers(model)",
        "the layers name 'head.weight', which is no parameter of the model; use salf.find_layers(model)",
        "the layers name 'fc1.mean', which is no buffer of the model; use salf.find_layers(model)",
        "the optimizer holds no whole layer of the model; pass all parameters of a layer to it",
    )


def test_every_reason_is_listed() -> None:
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    with pytest.raises(UnsuitableModel) as caught:
        deadline(model, LBFGS(other.parameters()), 1)
    assert len(caught.value.problems) == 2


def test_a_block_is_entered_once() -> None:
    task = mlp_task()
    optimizer = SGD(task.model.parameters(), lr=0.1)
    block = deadline(task.model, optimizer, 1, clock=Clock())
    with block as work:
        train(task, optimizer, steps=1)
        with pytest.raises(InvalidSetting, match="entered only once"), block:
            pass
        train(task, optimizer, steps=1)
    with pytest.raises(InvalidSetting, match="entered only once"), block:
        pass
    assert work.steps == 2


def test_a_block_that_is_made_and_not_entered_does_nothing() -> None:
    task = mlp_task()
    optimizer = SGD(task.model.parameters(), lr=0.1)
    before = {name: dict(vars(module)) for name, module in task.model.named_modules()}
    weights = parameters_of(task.model)
    deadline(task.model, optimizer, 1e-9)
    assert {name: dict(vars(module)) for name, module in task.model.named_modules()} == before
    assert same(parameters_of(task.model), weights)
    train(task, optimizer, steps=1)


def test_refusals_are_salf_errors_and_touch_nothing() -> None:
    task = TASKS["residual"]()
    optimizer = SGD(task.model.parameters(), lr=0.1)
    with pytest.raises(SalfError):
        deadline(task.model, optimizer, 0, layers=find_layers(task.model))
    assert not any(module._forward_pre_hooks for module in task.model.modules())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in task.model.parameters())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
