"""The model, and the update of a node that finishes some layers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from salf.layers import Layers, find_layers
from salf.update import Update


def a_model() -> tuple[nn.Module, Layers]:
    """Return a model of three layers, the same everywhere."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3))
    return model, find_layers(model)


def update_of(depth: int, node: int, number: int, layers: Layers, state: Mapping[str, Tensor]) -> Update:
    """Return the update of a node in a round, the same in every run."""
    generator = torch.Generator().manual_seed(1000 * number + node)
    names = [name for layer in layers[len(layers) - depth :] for name in layer.parameters]
    return Update({name: 0.1 * torch.randn(state[name].shape, generator=generator) for name in names}, 1, 10)
