"""Backpropagation that stops at a given layer."""

from collections.abc import Mapping

import torch
from torch import Tensor

from salf.errors import InvalidSetting
from salf.layers import Layers


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
