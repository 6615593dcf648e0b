"""Small vision transformers."""

from typing import Literal

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from salf.errors import InvalidSetting
from salf.models.shapes import Size, require_classes, require_image

_POSITION_DEVIATION = 0.02
_EXPANSION = 4


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Transformer:
    """A vision transformer (Dosovitskiy et al., arXiv 2010.11929), normalised before each sub-layer, without dropout.

    The image is cut into squares of side `patch`, each of which becomes a token of `width` numbers; `depth` blocks of
    attention with `heads` heads follow, and the mean of the tokens is classified. Raises `InvalidSetting` if `heads`
    does not divide `width`.

    >>> network = Transformer(width=16, depth=1, heads=2, patch=4).build((1, 8, 8), num_classes=10)
    >>> [name for name, _ in network.named_children()]
    ['embed', 'blocks', 'norm', 'head']
    """

    name: Literal["transformer"] = "transformer"
    width: Size = 32
    depth: Size = 2
    heads: Size = 4
    patch: Size = 4

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InvalidSetting(
                f"model.heads is {self.heads}, which does not divide model.width {self.width}; "
                "choose a width that is a multiple of the heads"
            )

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Build the network for images of shape (channels, height, width), whose sides are multiples of `patch`.

        Raises `InvalidSetting` for other sides, for examples that are no images, and for fewer than two classes.
        """
        channels, height, width = require_image(self.name, input_shape)
        if height % self.patch or width % self.patch:
            raise InvalidSetting(
                f"model.patch is {self.patch}, which does not divide the images' {height}×{width}; "
                "choose a common divisor of height and width"
            )
        return _Transformer(
            patch=self.patch,
            features=channels * self.patch**2,
            tokens=(height // self.patch) * (width // self.patch),
            width=self.width,
            blocks=[_Block(self.width, self.heads) for _ in range(self.depth)],
            num_classes=require_classes(num_classes),
        )


class _Transformer(nn.Module):
    """The whole network; it owns `position` itself, which backpropagation completes just before `embed`."""

    def __init__(
        self, *, patch: int, features: int, tokens: int, width: int, blocks: list["_Block"], num_classes: int
    ) -> None:
        super().__init__()
        self.patch = patch
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


class _Block(nn.Module):
    """Attention and a two-layer network, each normalised before and added to what it was given."""

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
    """Self-attention with several heads, each of width / heads numbers per token."""

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
