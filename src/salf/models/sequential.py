"""Networks that are chains of layers: fully connected ones, small convolutional ones, and VGG with BatchNorm."""

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from salf.errors import InvalidSetting
from salf.models.shapes import Sizes, SomeSizes, require_classes, require_image, require_positive
from salf.values import STRICT, Count

# Configurations A, B, D and E of Simonyan and Zisserman (arXiv 1409.1556), table 1: the convolutions before each of the
# five poolings, and their channels.
_CHANNELS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_SMALLEST = 2 ** len(_CHANNELS)


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
        """Build the network.

        Args:
            input_shape: Shape of one example, of any number of dimensions.
            num_classes: At least 2.

        Raises:
            InvalidSetting: A dimension is empty, or there are too few classes.
        """
        features = math.prod(require_positive(self.name, input_shape))
        sizes = (features, *self.hidden, require_classes(num_classes))
        return nn.Sequential(OrderedDict[str, nn.Module](flatten=nn.Flatten(), **_dense_layers(sizes)))


def _dense_layers(sizes: Sizes) -> dict[str, nn.Module]:
    """Return linear layers between consecutive sizes, with ReLU between them.

    >>> list(_dense_layers((4, 3, 2)))
    ['fc1', 'fc1_relu', 'fc2']
    """
    layers: dict[str, nn.Module] = {}
    for place, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        layers[f"fc{place}"] = nn.Linear(inputs, outputs)
        layers[f"fc{place}_relu"] = nn.ReLU()
    layers.popitem()
    return layers


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
        """Build the network for images.

        Args:
            input_shape: (channels, height, width).
            num_classes: At least 2.

        Raises:
            InvalidSetting: Images are too small for the poolings, or the shape or number does not fit.
        """
        inputs, height, width = require_image(self.name, input_shape)
        layers: dict[str, nn.Module] = {}
        for place, (before, after) in enumerate(pairwise((inputs, *self.channels)), start=1):
            layers[f"conv{place}"] = nn.Conv2d(before, after, self.kernel, padding=self.padding)
            layers[f"conv{place}_relu"] = nn.ReLU()
            layers[f"pool{place}"] = nn.MaxPool2d(2)
        features = self.channels[-1] * math.prod(self._remaining(height, width))
        sizes = (features, *self.hidden, require_classes(num_classes))
        return nn.Sequential(OrderedDict[str, nn.Module](**layers, flatten=nn.Flatten(), **_dense_layers(sizes)))

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


@dataclass(frozen=True, config=STRICT)
class Vgg:
    """A VGG network: 3×3 convolutions with BatchNorm and ReLU, and five poolings.

    One linear layer from 512 features, `fc`, follows. The convolutions and their BatchNorms are called block1.conv,
    block1.norm, …. Each is a layer of its own unless they are grouped by the prefixes block1, block2, ….

    >>> network = Vgg("vgg11").build((3, 32, 32), num_classes=10)
    >>> sum(parameter.numel() for parameter in network.parameters())
    9231114
    """

    name: Literal["vgg11", "vgg13", "vgg16", "vgg19"] = "vgg11"

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Build the network for images.

        For images larger than 32×32, the last feature maps are averaged.

        Args:
            input_shape: (channels, height, width), at least 32×32.
            num_classes: At least 2.

        Raises:
            InvalidSetting: The shape or the number does not fit.
        """
        channels, height, width = require_image(self.name, input_shape)
        if min(height, width) < _SMALLEST:
            raise InvalidSetting(
                f"model.name is '{self.name}', which halves an image five times, but the images are {height}×{width}; "
                f"choose 'cnn' or 'residual', or give images of at least {_SMALLEST}×{_SMALLEST}"
            )
        layers = OrderedDict[str, nn.Module]()
        block = 0
        for stage, (outputs, count) in enumerate(zip(_CHANNELS, _CONVOLUTIONS[self.name], strict=True), start=1):
            for _ in range(count):
                block += 1
                layers[f"block{block}"] = _block(channels, outputs)
                channels = outputs
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        layers["average"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels, require_classes(num_classes))
        return nn.Sequential(layers)


def _block(inputs: int, outputs: int) -> nn.Module:
    """Return convolution, BatchNorm and ReLU."""
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv=nn.Conv2d(inputs, outputs, 3, padding=1), norm=nn.BatchNorm2d(outputs), relu=nn.ReLU()
        )
    )
