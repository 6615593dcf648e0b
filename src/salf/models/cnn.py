"""Small convolutional networks for grey or colour images."""

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn

from salf.errors import InvalidSetting
from salf.models.mlp import dense_layers
from salf.models.shapes import Size, Sizes, SomeSizes, require_classes, require_image


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Cnn:
    """For each entry of `channels` a convolution, ReLU and 2×2 max-pooling; then fully connected layers.

    By default it is the network of the paper (arXiv 2403.18375) on MNIST: two 5×5 convolutions of 6 channels, FC 50,
    FC 10. The layers that own parameters are called conv1, conv2, …, and from the first fully connected one fc1, ….

    >>> network = Cnn(channels=(16, 16), kernel=3, padding=1, hidden=(32,)).build((1, 8, 8), num_classes=10)
    >>> [name for name, _ in network.named_parameters() if name.endswith("weight")]
    ['conv1.weight', 'conv2.weight', 'fc1.weight', 'fc2.weight']
    """

    name: Literal["cnn"] = "cnn"
    channels: SomeSizes = (6, 6)
    kernel: Size = 5
    padding: Annotated[int, Field(strict=True, ge=0)] = 0
    hidden: Sizes = (50,)

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Build the network for images of shape (channels, height, width).

        Raises `InvalidSetting` if the examples are no images, if nothing is left of them after some pooling, or if
        there are fewer than two classes.
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
        """Return height and width after the last pooling; raises `InvalidSetting` if nothing is left."""
        for place in range(1, len(self.channels) + 1):
            before = f"{height}×{width}"
            height, width = ((side + 2 * self.padding - self.kernel + 1) // 2 for side in (height, width))
            if min(height, width) < 1:
                raise InvalidSetting(
                    f"model.kernel is {self.kernel} and model.padding {self.padding}, so that convolution {place} and "
                    f"its 2×2 pooling leave nothing of the {before} they get; "
                    "choose a smaller kernel, more padding or fewer model.channels"
                )
        return height, width
