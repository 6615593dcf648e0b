"""Fully connected networks."""

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Literal

from pydantic.dataclasses import dataclass
from torch import nn

from salf.models.shapes import Sizes, require_classes, require_positive
from salf.values import STRICT


@dataclass(frozen=True, config=STRICT)
class Mlp:
    """A fully connected network with ReLU between its layers fc1, fc2, ….

    The default `hidden` sizes give the network 784-32-16-10 of the paper (arXiv 2403.18375) on MNIST. Without hidden
    layers it is softmax regression.

    >>> Mlp(hidden=(8,)).build(input_shape=(1, 8, 8), num_classes=10)
    Sequential(
      (flatten): Flatten(start_dim=1, end_dim=-1)
      (fc1): Linear(in_features=64, out_features=8, bias=True)
      (fc1_relu): ReLU()
      (fc2): Linear(in_features=8, out_features=10, bias=True)
    )
    """

    name: Literal["mlp"] = "mlp"
    hidden: Sizes = (32, 16)

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Build the network for examples of any shape.

        An empty shape or fewer than two classes raise `InvalidSetting`.
        """
        features = math.prod(require_positive(self.name, input_shape))
        sizes = (features, *self.hidden, require_classes(num_classes))
        return nn.Sequential(OrderedDict[str, nn.Module](flatten=nn.Flatten(), **dense_layers(sizes)))


def dense_layers(sizes: Sizes) -> dict[str, nn.Module]:
    """Return linear layers between consecutive sizes, with ReLU between them.

    >>> list(dense_layers((4, 3, 2)))
    ['fc1', 'fc1_relu', 'fc2']
    """
    layers: dict[str, nn.Module] = {}
    for place, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        layers[f"fc{place}"] = nn.Linear(inputs, outputs)
        layers[f"fc{place}_relu"] = nn.ReLU()
    layers.popitem()
    return layers
