from collections.abc import Callable

import pytest
import torch
from networks import TASKS, Task, backward, mlp_task
from torch import nn

from salf.client.suitability import truncated_gradients
from salf.errors import InvalidSetting
from salf.layers.find import Layer, Layers, find_layers

every_task = pytest.mark.parametrize("make", TASKS.values(), ids=TASKS.keys())


@every_task
def test_they_are_those_of_the_full_backward_pass(make: Callable[[], Task]) -> None:
    task = make()
    layers = find_layers(task.model, task.example)
    parameters = dict(task.model.named_parameters())
    backward(task.loss())
    for depth in range(len(layers) + 1):
        names = [name for layer in layers[len(layers) - depth :] for name in layer.parameters]
        truncated = truncated_gradients(task.loss(), parameters, layers, depth)
        assert list(truncated) == names
        for name, gradient in truncated.items():
            whole = parameters[name].grad
            assert whole is not None
            assert torch.equal(gradient, whole), name


def test_they_leave_no_gradient_on_the_model() -> None:
    task = mlp_task()
    truncated_gradients(task.loss(), dict(task.model.named_parameters()), find_layers(task.model), depth=2)
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_backpropagation_goes_no_further_than_they_need() -> None:
    task = mlp_task()
    reached: list[str] = []
    for name, module in task.model.named_children():
        module.register_full_backward_pre_hook(lambda *_, name=name: reached.append(name))
    truncated_gradients(task.loss(), dict(task.model.named_parameters()), find_layers(task.model), depth=2)
    assert "fc3" in reached
    assert "fc1" not in reached


def test_a_parameter_that_is_not_used_has_none() -> None:
    task = TASKS["unused"]()
    layers = find_layers(task.model)
    assert layers.names == ("stem", "idle", "head")
    truncated = truncated_gradients(task.loss(), dict(task.model.named_parameters()), layers, depth=3)
    assert list(truncated) == ["stem.weight", "stem.bias", "head.weight", "head.bias"]


@pytest.mark.parametrize("depth", [-1, 3, 100])
def test_a_depth_that_there_is_not_is_refused(depth: int) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    layers = Layers((Layer("0", ("0.weight", "0.bias")), Layer("1", ("1.weight", "1.bias"))))
    loss = model(torch.ones(1, 2)).sum()
    with pytest.raises(InvalidSetting, match=f"depth is {depth}; choose a number of layers from 0 to 2"):
        truncated_gradients(loss, dict(model.named_parameters()), layers, depth)
