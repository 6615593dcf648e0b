"""Whether a model, an optimizer and a deadline can work together."""

import inspect
from collections.abc import Iterator

from torch import nn
from torch.optim import Optimizer

from salf.errors import UnsuitableModel
from salf.layers import Layers


def trainable_parameters(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return the model's trainable parameters that the optimizer holds, by name."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: value for name, value in model.named_parameters() if value.requires_grad and id(value) in held}


def check_suitable(model: nn.Module, optimizer: Optimizer, layers: Layers) -> None:
    """Raise `UnsuitableModel`, with every reason, unless a deadline can interrupt the training of these layers."""
    problems = [*_layer_problems(model, layers), *_optimizer_problems(model, optimizer, layers)]
    if problems:
        raise UnsuitableModel(f"{type(model).__name__} cannot be trained under a deadline", problems)


def _layer_problems(model: nn.Module, layers: Layers) -> Iterator[str]:
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    wrong = {name: "parameter" for layer in layers for name in layer.parameters if name not in parameters}
    wrong |= {name: "buffer" for layer in layers for name in layer.buffers if name not in buffers}
    for name, kind in wrong.items():
        yield f"the layers name '{name}', which is no {kind} of the model; use salf.find_layers(model)"


def _optimizer_problems(model: nn.Module, optimizer: Optimizer, layers: Layers) -> Iterator[str]:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        name = type(optimizer).__name__
        yield f"{name}.step needs a closure, which runs backward passes itself; use an optimizer without one"
    held = trainable_parameters(model, optimizer)
    if not held:
        yield "the optimizer holds no trainable parameter of the model; pass model.parameters() to it"
    elif not any(all(name in held for name in layer.parameters) for layer in layers):
        yield "the optimizer holds no whole layer of the model; pass all parameters of a layer to it"
