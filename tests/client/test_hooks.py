"""Hooks report the events of a training loop, and go without a trace."""

import copy
import threading
from collections.abc import Mapping

import pytest
import torch
from networks import backward
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from salf.client.hooks import Hooks, is_compiled
from salf.client.torch_events import BackwardCall, reached_parameters


class Listener:
    def __init__(self) -> None:
        self.events: list[str] = []

    def on_model(self, arguments: tuple[object, ...], named: Mapping[str, object]) -> None:
        self.events.append(f"model of {len(arguments) + len(named)}")

    def on_module(self, name: str) -> None:
        self.events.append(f"module {name}")

    def on_backward(self, call: BackwardCall, roots: tuple[object, ...], inputs: tuple[object, ...] | None) -> None:
        self.events.append(f"backward of {len(roots)}")
        call()

    def on_gradient(self, name: str) -> None:
        self.events.append(name)

    def on_scale(self, scaler: torch.amp.GradScaler) -> None:
        self.events.append("scale")

    def before_step(self, optimizer: Optimizer, arguments: tuple[object, ...], named: Mapping[str, object]) -> None:
        self.events.append("before")

    def after_step(self, optimizer: Optimizer) -> None:
        self.events.append("after")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))


def is_without_trace(model: nn.Module) -> bool:
    return (
        torch.autograd.backward.__module__ == "torch.autograd"
        and not (_global_optimizer_pre_hooks or _global_optimizer_post_hooks)
        and not any(module._forward_pre_hooks for module in model.modules())
        and not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    )


def test_events_are_reported_until_the_hooks_are_removed() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    listener, hooks = Listener(), Hooks(model)

    def step(trained: nn.Module) -> None:
        backward(trained(torch.ones(1, 2)).sum())
        optimizer.step()

    hooks.register(listener, ["0.weight", "2.bias"])
    assert hooks.are_registered
    step(model)
    passing = ["model of 1", "module 0", "module 2", "backward of 1", "2.bias", "0.weight", "before", "after"]
    assert listener.events == passing
    step(copy.deepcopy(model))
    assert listener.events[len(passing) :] == ["backward of 1", "before", "after"]
    hooks.remove()
    assert is_without_trace(model)
    events = len(listener.events)
    step(model)
    assert len(listener.events) == events


def test_if_one_hook_cannot_be_registered_none_is() -> None:
    model, hooks = network(), Hooks(network())
    with pytest.raises(AttributeError, match="absent"):
        hooks.register(Listener(), ["0.weight", "2.absent"])
    assert not hooks.are_registered
    assert is_without_trace(model)


def test_other_threads_are_not_watched() -> None:
    model, listener = network(), Listener()
    hooks = Hooks(model)
    hooks.register(listener, [])
    weight = nn.Parameter(torch.ones(1))

    def train() -> None:
        backward(weight.sum())
        SGD([weight]).step()

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert listener.events == []
    train()
    assert listener.events == ["backward of 1", "before", "after"]
    hooks.remove()


def test_hooks_of_two_blocks_may_be_removed_in_any_order() -> None:
    (first, second), model = (Hooks(network()), Hooks(network())), network()
    listeners = Listener(), Listener()
    first.register(listeners[0], [])
    second.register(listeners[1], [])
    first.remove()
    backward(model(torch.ones(1, 2)).sum())
    assert [listener.events for listener in listeners] == [[], ["backward of 1"]]
    second.remove()
    assert is_without_trace(model)


def test_hooks_stay_out_of_compiled_modules() -> None:
    model = nn.Sequential(network(), nn.Linear(1, 1))
    names = [name for name, _ in model.named_parameters()]
    model[0].compile(backend="eager")
    assert is_compiled(model)
    hooks = Hooks(model)
    hooks.register(Listener(), names)
    assert [name for name, module in model.named_modules() if module._forward_pre_hooks] == ["", "1"]
    hooks.remove()


def test_the_reached_parameters_are_those_that_get_a_gradient() -> None:
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("used", "detached", "unused")})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    loss = model["used"](model["detached"](torch.ones(1, 2)).detach()).sum()
    assert reached_parameters([loss], None, names) == {"used.weight", "used.bias"}
    assert reached_parameters([loss], [model["used"].bias], names) == {"used.bias"}
    assert reached_parameters([model["unused"].bias], None, names) == {"unused.bias"}
    backward(loss)
    assert reached_parameters([loss], None, names) == {"used.weight", "used.bias"}
