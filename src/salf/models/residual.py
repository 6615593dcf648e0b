"""Small residual networks with BatchNorm."""

from collections import OrderedDict
from typing import Literal

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from salf.errors import InvalidSetting
from salf.models.shapes import SomeSizes, require_classes, require_image
from salf.values import STRICT, Count


@dataclass(frozen=True, config=STRICT)
class ResidualNet:
    """A residual network of basic blocks (He et al., arXiv 1512.03385).

    Each entry of `blocks` is the number of blocks of a stage. The first stage has `width` channels and the resolution
    of the image; each further stage has twice the channels and half the resolution. `blocks=(3, 3, 3)` with 16 channels
    is that paper's ResNet-20 for CIFAR, with 1×1 convolutions on the shortcuts that change the shape.

    >>> network = ResidualNet(width=8, blocks=(1, 1)).build((1, 8, 8), num_classes=10)
    >>> [name for name, _ in network.named_children()]
    ['conv', 'norm', 'relu', 'stage1', 'stage2', 'average', 'flatten', 'fc']
    """

    name: Literal["residual"] = "residual"
    width: Count = 16
    blocks: SomeSizes = (1, 1, 1)

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Build the network for images.

        Args:
            input_shape: (channels, height, width). The last stage must see at least 2×2, so that BatchNorm can train on
                a batch of one example.
            num_classes: At least 2.

        Raises:
            InvalidSetting: Images are too small, or the shape or number does not fit.
        """
        inputs, height, width = require_image(self.name, input_shape)
        smallest = 2 ** len(self.blocks)
        if min(height, width) < smallest:
            raise InvalidSetting(
                f"model.blocks has {len(self.blocks)} stages, which need images of at least {smallest}×{smallest}, but "
                f"the images are {height}×{width}; choose fewer stages or give larger images"
            )
        layers = OrderedDict[str, nn.Module](
            conv=nn.Conv2d(inputs, self.width, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(self.width),
            relu=nn.ReLU(),
        )
        channels = self.width
        for stage, count in enumerate(self.blocks):
            outputs = self.width * 2**stage
            first = _ResidualBlock(channels, outputs, stride=1 if stage == 0 else 2)
            layers[f"stage{stage + 1}"] = nn.Sequential(
                first, *(_ResidualBlock(outputs, outputs, stride=1) for _ in range(count - 1))
            )
            channels = outputs
        layers["average"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels, require_classes(num_classes))
        return nn.Sequential(layers)


class _ResidualBlock(nn.Module):
    """Two 3×3 convolutions, added to the input.

    A 1×1 convolution adapts an input of another shape.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        # Declared first, because its gradient is complete last.
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=convolution, norm=nn.BatchNorm2d(outputs)))
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map images to `outputs` channels, of sides divided by `stride` and rounded up."""
        shortcut = self.shortcut(x)
        residual = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        added: Tensor = self.relu2(residual + shortcut)
        return added
