"""VGG networks as usual for CIFAR: BatchNorm and one fully connected layer."""

from collections import OrderedDict
from typing import Literal

from pydantic.dataclasses import dataclass
from torch import nn

from salf.errors import InvalidSetting
from salf.models.shapes import require_classes, require_image
from salf.values import STRICT

# Configurations A, B, D and E of Simonyan and Zisserman (arXiv 1409.1556), table 1: the convolutions before each of the
# five poolings, and their channels.
_CHANNELS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_SMALLEST = 2 ** len(_CHANNELS)


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
        """Build the network for images of shape (channels, height, width), at least 32×32.

        For larger images, the last feature maps are averaged. Smaller images, other shapes, and fewer than two classes
        raise `InvalidSetting`.
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
