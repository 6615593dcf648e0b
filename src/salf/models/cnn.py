"""Small convolutional networks for grey or colour images."""

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from salf.errors import InvalidSetting
from salf.models.mlp import dense_layers
from salf.models.shapes import Sizes, SomeSizes, require_classes, require_image
from salf.values import STRICT, Count


@dataclass(frozen=True, config=STRICT)
class Cnn:
    """A convolutional network for grey or colour images.

    Each entry of `channels` gives a convolution, ReLU and 2×2 max-pooling. Fully connected layers of the sizes `hidden`
    follow. The defaults give the network of the paper (arXiv 2403.18375) on MNIST: two 5×5 convolutions of 6 channels,
    FC 50, FC 10. Layers with parameters are called conv1, conv2, …, fc1, fc2, ….

    >>> network = Cnn(channels=(16, 16), kernel=3, padding=1, hidden=(32,)).build((1, 8, 8), num_classes=10)
    >>> [name for name, _ in network.named_parameters() if name.endswith("weight")]
    ['conv1.weight', 'conv2.weight', 'fc1.weight', 'fc2.weight']
    """

    name: Literal["cnn"] = "cnn"
    channels: SomeSizes = (6, 6)
    kernel: Count = 5
    padding: Annotated[int, Field(strict=True, ge=0)] = 0
    hidden: Sizes = (50,)

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Build the network for images of shape (channels, height, width).

        Other shapes, images too small for the poolings, and fewer than two classes raise `InvalidSetting`.
        """
        inputs, height, width = require_image(self.name, input_shape)
        layers: dict[str, nn.Module] = {}
        for place, (before, after) in enumerate(pairwise((inputs, *self.channels)), start=1):
            layers[f"conv{place}"] = nn.Conv2d(before, after, self.kernel, padding=self.padding)
            layers[f"conv{place}_relu"] = nn.ReLU()
            layers[f"pool{place}"] = nn.MaxPool2d(2)
        features = self.channels[-1] * math.prod(self._remaining(height, width))
        sizes = (features, *self.hidden, require_classes(num_classes))
        return nn.Sequential(OrderedDict[str, nn.Module](**layers, flatten=nn.Flatten(), **dense_layers(sizes)))

    def _remaining(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after the last pooling, at least 1×1."""
        for place in range(1, len(self.channels) + 1):
            before = f"{height}×{width}"
            height, width = ((side + 2 * self.padding - self.kernel + 1) // 2 for side in (height, width))
            if min(height, width) < 1:
                raise InvalidSetting(
                    f"model.kernel is {self.kernel} and model.padding {self.padding}, so that convolution {place} and "
                    f"its 2×2 pooling leave nothing of the {before} input; "
                    "choose a smaller kernel, more padding or fewer model.channels"
                )
        return height, width
