"""A clock that moves only by `advance`, and models whose passes advance it."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from salf.layers import Layers


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


def take_time(
    model: nn.Module,
    layers: Layers,
    pass_time: Callable[[float], None],
    *,
    forward: float = 1.0,
    backward: float | Mapping[str, float] = 1.0,
) -> None:
    """Let a forward pass last `forward` seconds, and each layer's part of a backward pass `backward`.

    Call it before the block begins, for hooks run in the order in which they were added.
    """
    modules = dict(model.named_modules())
    entered = next(modules[name] for name in layers.names if name in modules)
    entered.register_forward_hook(lambda *_: pass_time(forward))
    for layer in layers:
        seconds = backward[layer.name] if isinstance(backward, Mapping) else backward
        on_gradient(model, layer.parameters[0], partial(pass_time, seconds))


def on_gradient(model: nn.Module, name: str, act: Callable[[], None]) -> None:
    parameter = model.get_parameter(name)
    parameter.register_post_accumulate_grad_hook(lambda _: act())  # type: ignore[no-untyped-call]
