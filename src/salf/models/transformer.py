"""Small vision transformers."""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from salf.errors import InvalidSetting
from salf.models.shapes import require_classes, require_image
from salf.values import STRICT, Count

_POSITION_DEVIATION = 0.02
_EXPANSION = 4


@dataclass(frozen=True, config=STRICT)
class Transformer:
    """A vision transformer (Dosovitskiy et al., arXiv 2010.11929).

    The image is cut into squares of side `patch`, and each becomes a token of `width` numbers. `depth` blocks of
    attention with `heads` heads follow; the mean of the tokens is classified. Each sub-layer normalises its input, and
    there is no dropout. `heads` must divide `width`.

    >>> network = Transformer(width=16, depth=1, heads=2, patch=4).build((1, 8, 8), num_classes=10)
    >>> [name for name, _ in network.named_children()]
    ['embed', 'blocks', 'norm', 'head']
    """

    name: Literal["transformer"] = "transformer"
    width: Count = 32
    depth: Count = 2
    heads: Count = 4
    patch: Count = 4

    def __post_init__(self) -> None:
        if self.width % self.heads:
            problem = f"model.heads is {self.heads}, which does not divide model.width {self.width}"
            raise InvalidSetting(f"{problem}; choose a width that is a multiple of the heads")

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Build the network for images.

        Args:
            input_shape: (channels, height, width); height and width are multiples of `patch`.
            num_classes: At least 2.

        Raises:
            InvalidSetting: The shape or the number does not fit.
        """
        channels, height, width = require_image(self.name, input_shape)
        if height % self.patch or width % self.patch:
            problem = f"model.patch is {self.patch}, which does not divide the images' {height}×{width}"
            raise InvalidSetting(f"{problem}; choose a common divisor of height and width")
        features, tokens = channels * self.patch**2, (height // self.patch) * (width // self.patch)
        return _Transformer(self, features, tokens, require_classes(num_classes))


class _Transformer(nn.Module):
    """The network; its gradient of `position` is complete just before that of `embed`.

    Args:
        settings: The description.
        features: The number of values in a patch.
        tokens: The number of patches.
        num_classes: The number of scores.
    """

    def __init__(self, settings: Transformer, features: int, tokens: int, num_classes: int) -> None:
        super().__init__()
        self.patch, width = settings.patch, settings.width
        blocks = [_AttentionBlock(width, settings.heads) for _ in range(settings.depth)]  # draw their weights first
        self.embed = nn.Linear(features, width)
        self.position = nn.Parameter(torch.empty(tokens, width))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.position, std=_POSITION_DEVIATION)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, channels, height, width) to scores (batch, classes)."""
        patches = functional.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)
        tokens = self.blocks(self.embed(patches) + self.position)
        scores: Tensor = self.head(self.norm(tokens).mean(1))
        return scores


class _AttentionBlock(nn.Module):
    """Attention and a two-layer network, each normalised first and then added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, _EXPANSION * width)
        self.gelu = nn.GELU()
        self.contract = nn.Linear(_EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (batch, tokens, width) to tokens of the same shape."""
        x = x + self.attention(self.norm1(x))
        mixed: Tensor = x + self.contract(self.gelu(self.expand(self.norm2(x))))
        return mixed


class _Attention(nn.Module):
    """Self-attention with several heads of width / heads numbers per token each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.split = (3, heads, width // heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (batch, tokens, width) to tokens of the same shape."""
        query, key, value = self.qkv(x).unflatten(2, self.split).transpose(1, 3).unbind(2)
        attended = functional.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return mixed
