"""What `find_layers` does with an example, and what it refuses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import TASKS, Task, backward, buffers_of, mlp_task, parameters_of, same
from torch import Tensor, nn

from salf.errors import InvalidSetting, UnsuitableModel
from salf.layers.find import Grouping, find_layers
from salf.layers.probe import Example

every_task = pytest.mark.parametrize("make", TASKS.values(), ids=TASKS.keys())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.right, self.left = nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, one: Tensor, two: Tensor, *, scale: float = 1.0) -> dict[str, object]:
        hidden = torch.tanh(self.left(one))
        return {"scores": [scale * self.right(hidden[:, :2] * two)], "index": torch.argmax(hidden), "note": "none"}


@pytest.mark.parametrize(
    "example",
    [
        (torch.ones(1, 2), torch.ones(1, 2)),
        [torch.ones(1, 2), torch.ones(1, 2)],
        {"one": torch.ones(1, 2), "two": torch.ones(1, 2), "scale": 2.0},
    ],
    ids=["tuple", "list", "mapping"],
)
def test_an_example_may_have_several_parts_and_so_may_the_output(example: Example) -> None:
    assert find_layers(TwoInputs(), example).names == ("left", "right")


def test_batch_norm_may_be_given_a_batch_of_one() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    assert find_layers(model, torch.ones(1, 3)).names == ("0", "1", "3")


def state_of(model: nn.Module) -> tuple[object, ...]:
    """Everything about a model but its tensors."""
    modules = {name: (module.training, list(vars(module))) for name, module in model.named_modules()}
    hooks = [len(value) for module in model.modules() for key, value in vars(module).items() if "hooks" in key]
    hooks += [len(parameter._post_accumulate_grad_hooks or ()) for parameter in model.parameters()]
    return modules, hooks, [id(tensor) for tensor in (*model.parameters(), *model.buffers())]


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@every_task
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_not_touched(make: Callable[[], Task], training: bool) -> None:
    task = make()
    model = nn.Sequential(task.model, nn.Dropout()).train(training)
    backward(task.loss())
    next(iter(task.model.children())).eval()
    state, weights, buffers, gradients = state_of(model), parameters_of(model), buffers_of(model), gradients_of(model)
    drawn = torch.get_rng_state()
    find_layers(model, task.example)
    find_layers(model)
    assert state_of(model) == state
    assert same(parameters_of(model), weights)
    assert same(buffers_of(model), buffers)
    assert same(gradients_of(model), gradients)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_the_probe_works_without_gradients_around_it() -> None:
    task = mlp_task()
    with torch.no_grad():
        assert find_layers(task.model, task.example).names == ("fc1", "fc2", "fc3")
        assert not torch.is_grad_enabled()


class Fussy(nn.Linear):
    """Wants its targets while it trains."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            raise ValueError("no targets")
        return super().forward(input)


def test_a_model_that_refuses_to_train_on_the_example_is_watched_in_evaluation() -> None:
    model = nn.Sequential(Fussy(2, 2), nn.Linear(2, 1))
    assert find_layers(model, torch.ones(1, 2)).names == ("0", "1")


class Detached(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).detach()


class Rounded(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).argmax(-1)


class Spoiling(nn.Linear):
    """Changes in place what its backward pass needs."""

    def forward(self, input: Tensor) -> Tensor:
        scores = super().forward(input).exp()
        changed = scores * 2
        scores.mul_(0)
        return changed


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo: object) -> "Uncopyable":
        raise TypeError("cannot be two")


def with_complex_weight() -> nn.Module:
    model = nn.Linear(2, 1)
    model.weight = nn.Parameter(torch.ones(1, 2, dtype=torch.complex64))
    return model


REASONS: dict[str, tuple[Callable[[], nn.Module], Example | None, Grouping | None, str]] = {
    "no parameters": (nn.Tanh, None, None, "it has no parameters"),
    "all frozen": (
        lambda: nn.Linear(2, 1).requires_grad_(requires_grad=False),
        None,
        None,
        "every parameter is frozen",
    ),
    "no shape yet": (lambda: nn.LazyLinear(2), torch.ones(1, 2), None, "'weight' has no shape yet"),
    "complex": (with_complex_weight, None, None, "'weight' is of type torch.complex64, which cannot be averaged"),
    "wrong shape": (lambda: nn.Linear(2, 1), torch.ones(1, 3), None, "the forward pass fails on the example"),
    "wrong type": (
        lambda: nn.Linear(2, 1),
        torch.ones(1, 2, dtype=torch.long),
        None,
        "the forward pass fails on the ex",
    ),
    "too few arguments": (TwoInputs, (torch.ones(1, 2),), None, "forward\\(\\) missing 1 required positional"),
    "wrong argument": (TwoInputs, {"three": torch.ones(1, 2)}, None, "unexpected keyword argument 'three'"),
    "not differentiable": (lambda: Detached(2, 1), torch.ones(1, 2), None, "no output of the model depends on"),
    "no real output": (lambda: Rounded(2, 1), torch.ones(1, 2), None, "no output of the model depends on"),
    "spoilt": (lambda: Spoiling(2, 1), torch.ones(1, 2), None, "the backward pass fails on the example"),
    "uncopyable": (lambda: Uncopyable(2, 1), torch.ones(1, 2), None, "cannot be copied for the probe .*cannot be two"),
    "compiled to a script": (
        lambda: torch.jit.script(nn.Sequential(nn.Linear(2, 1))),
        torch.ones(1, 2),
        None,
        "its calls cannot be watched; pass the uncompiled model",
    ),
    "no such prefix": (
        lambda: nn.Sequential(nn.Linear(2, 1)),
        None,
        ["0", "head"],
        "group names 'head', which is no mod",
    ),
    "prefix no name": (lambda: nn.Sequential(nn.Linear(2, 1)), None, [0], "group holds 0, which is not the name"),  # type: ignore[list-item]
    "group no names": (lambda: nn.Linear(2, 1), None, 3, "group holds 3, which is not the name"),  # type: ignore[dict-item]
    "function of no name": (
        lambda: nn.Sequential(nn.Linear(2, 1)),
        None,
        lambda name: None if name else "model",  # type: ignore[dict-item]
        "group gives no layer name for module '0'",
    ),
}


@pytest.mark.parametrize(("make", "example", "group", "reason"), REASONS.values(), ids=REASONS.keys())
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature", "ignore:`torch.jit.script` is deprecated")
def test_what_is_unsuitable_is_refused_with_the_reason(
    make: Callable[[], nn.Module], example: Example | None, group: Grouping | None, reason: str
) -> None:
    model = make()
    with pytest.raises(UnsuitableModel, match=reason) as caught:
        find_layers(model, example, group)
    assert str(caught.value).startswith(f"{type(model).__name__} cannot be trained layer by layer: ")
    assert caught.value.problems


@pytest.mark.parametrize("model", [None, 3, "model", nn.Linear, [nn.Linear(2, 1)], torch.ones(1, 2)])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"model is (of type|the class) \w+; give an nn.Module, already built"):
        find_layers(model)


@pytest.mark.parametrize("example", [3, "text", np.ones((1, 2)), {1, 2}, object()])
def test_what_is_no_example_is_refused(example: Any) -> None:
    with pytest.raises(
        InvalidSetting, match=r"example is of type \w+; give one batch: a tensor, or a tuple or mapping"
    ):
        find_layers(nn.Linear(2, 1), example)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_every_reason_is_listed() -> None:
    with pytest.raises(UnsuitableModel) as caught:
        find_layers(nn.Sequential(nn.Linear(2, 1)), torch.ones(1, 3), group=["a", "b"])
    assert len(caught.value.problems) == 3
    with pytest.raises(UnsuitableModel) as caught:
        find_layers(nn.Sequential(nn.LazyLinear(1), nn.LazyLinear(1)), group=["a"])
    assert len(caught.value.problems) == 5
