"""Hooks report the events of a training loop, and go without a trace."""

import copy

import torch
from networks import backward
from torch import nn
from torch.optim import SGD

from salf.client.hooks import Hooks


def test_events_are_reported_until_the_hooks_are_removed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    optimizer = SGD(model.parameters(), lr=0.1)
    events: list[str] = []
    hooks = Hooks(model, optimizer)

    def step(trained: nn.Module) -> None:
        backward(trained(torch.ones(1, 2)).sum())
        optimizer.step()

    hooks.register(
        ["0.weight", "2.bias"],
        on_model=lambda: events.append("model"),
        on_module=lambda: events.append("module"),
        on_gradient=lambda name, _: events.append(name),
        before_step=lambda *_: events.append("before"),
        after_step=lambda *_: events.append("after"),
    )
    assert hooks.are_registered
    step(model)
    assert events == ["model", "module", "module", "2.bias", "0.weight", "before", "after"]
    step(copy.deepcopy(model))
    assert events[7:] == ["before", "after"]
    hooks.remove()
    assert not any(module._forward_pre_hooks for module in model.modules())
    step(model)
    assert len(events) == 9
