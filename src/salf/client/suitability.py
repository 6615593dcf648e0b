"""Whether a model, an optimizer and a deadline can work together; gradients down to a depth, without a clock."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from salf.client.optimizer_steps import needs_closure
from salf.errors import InvalidSetting, UnsuitableModel, check_type
from salf.layers import Layer, Layers, sharding_problems, unwrapped


def truncated_gradients(
    loss: Tensor, parameters: Mapping[str, Tensor], layers: Layers, depth: int
) -> dict[str, Tensor]:
    """Return the gradients of the last `depth` layers; backpropagation stops there.

    The gradients equal those of the full backward pass bit for bit. No `.grad` field changes.

    Args:
        loss: The scalar to differentiate.
        parameters: The model's parameters by name, as in `dict(model.named_parameters())`.
        layers: The model's layers, from `find_layers`.
        depth: Number of layers, counted from the output: 0 to `len(layers)`.

    Returns:
        One gradient per parameter name, without the parameters on which `loss` does not depend.

    Raises:
        InvalidSetting: `depth` is out of range.

    >>> from torch import nn
    >>> from salf.layers import find_layers
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> loss = model(torch.ones(2, 3)).sum()
    >>> sorted(truncated_gradients(loss, dict(model.named_parameters()), find_layers(model), depth=1))
    ['2.bias', '2.weight']
    """
    if not 0 <= depth <= len(layers):
        raise InvalidSetting(f"depth is {depth!r}; choose a number of layers from 0 to {len(layers)}")
    names = [name for layer in layers[len(layers) - depth :] for name in layer.parameters]
    if not names:
        return {}
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
        loss, [parameters[name] for name in names], allow_unused=True
    )
    return {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def trainable_parameters(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return the model's trainable parameters that the optimizer holds, by name."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: value for name, value in model.named_parameters() if value.requires_grad and id(value) in held}


def held_layers(optimizer: Optimizer, layers: Layers, parameters: Mapping[str, Tensor]) -> list[Layer]:
    """Return the layers that an optimizer holds whole; `parameters` are the model's, by name."""
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    return [layer for layer in layers if all(id(parameters[name]) in held for name in layer.parameters)]


def check_optimizer(optimizer: object) -> None:
    """Raise `InvalidSetting` unless this is None or an optimizer, or has `param_groups` and `step` like one."""
    if optimizer is not None and not (
        hasattr(optimizer, "param_groups") and callable(getattr(optimizer, "step", None))
    ):
        check_type("optimizer", optimizer, Optimizer, "a torch.optim.Optimizer")


def is_private(model: nn.Module, optimizer: Optimizer | None) -> bool:
    """Say whether gradients are clipped per example and noised, as by Opacus; then only whole steps may be sent."""
    kinds = (*type(optimizer).__mro__, *(kind for module in model.modules() for kind in type(module).__mro__))
    return any(kind.__name__ in {"DPOptimizer", "AbstractGradSampleModule", "GradSampleModule"} for kind in kinds)


def runs_in_buckets(model: nn.Module) -> bool:
    """Say whether a wrapper delivers gradients in buckets, so that no backward pass may be interrupted."""
    return any(isinstance(module, DistributedDataParallel) for module in model.modules())


def check_suitable(model: nn.Module, optimizer: Optimizer | None, layers: Layers) -> None:
    """Raise `UnsuitableModel`, with every reason, unless a deadline can interrupt the training of these layers."""
    problems = [*_wrapper_problems(model)]
    model = unwrapped(model)
    problems += _layer_problems(model, layers)
    if optimizer is not None:
        problems += _optimizer_problems(model, optimizer, layers)
    if problems:
        raise UnsuitableModel(f"{type(model).__name__} cannot be trained under a deadline", problems)


def _wrapper_problems(model: nn.Module) -> Iterator[str]:
    for module in model.modules():
        if isinstance(module, DistributedDataParallel) and torch.distributed.get_world_size(module.process_group) > 1:
            yield "DistributedDataParallel spans several processes, which would wait for each other; use one process"
    yield from sharding_problems(model)


def _layer_problems(model: nn.Module, layers: Layers) -> Iterator[str]:
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    wrong = {name: "parameter" for layer in layers for name in layer.parameters if name not in parameters}
    wrong |= {name: "buffer" for layer in layers for name in layer.buffers if name not in buffers}
    for name, kind in wrong.items():
        yield f"the layers name '{name}', which is no {kind} of the model; use salf.find_layers(model)"


def _optimizer_problems(model: nn.Module, optimizer: Optimizer, layers: Layers) -> Iterator[str]:
    if needs_closure(optimizer):
        name = type(optimizer).__name__
        yield f"{name}.step needs a closure, which runs backward passes itself; use an optimizer without one"
    held = trainable_parameters(model, optimizer)
    if not held:
        yield "the optimizer holds no trainable parameter of the model; pass model.parameters() to it"
    elif not any(all(name in held for name in layer.parameters) for layer in layers):
        yield "the optimizer holds no whole layer of the model; pass all parameters of a layer to it"
