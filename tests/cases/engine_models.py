"""Small models of every kind that the fast engines must train as the plain one does."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from salf.models import Cnn, Mlp, ResidualNet, Transformer

SHAPE, CLASSES = (2, 6, 6), 4
TOKENS, LENGTH, WIDTH = 7, 5, 6


class Apply(nn.Module):
    """A function of rows as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Functional(nn.Module):
    """Shapes taken from the batch, and views, permutations and concatenations of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(6, 4)
        self.columns = nn.Linear(6, 4)
        self.mixed = nn.Linear(8, 3)
        self.head = nn.Linear(39, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        size = x.size(0)
        rows = self.rows(x.view(size * 12, 6)).view(size, 12, 4)
        columns = self.columns(x.permute(0, 1, 3, 2).reshape(x.shape[0], -1, 6)).tanh()
        both = self.mixed(torch.cat([rows.permute(1, 0, 2), columns.transpose(0, 1)], dim=2))
        flat = both.permute(1, 0, 2).reshape(size, -1)
        scores: Tensor = self.head(torch.cat((flat, x.mean((2, 3)), x.amax((1, 2, 3)).unsqueeze(1)), dim=-1))
        return scores


class Branches(nn.Module):
    """Two branches side by side, declared from the output on, and a way around everything."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(10, CLASSES)
        self.around = nn.Linear(72, 4)
        self.right = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6))
        self.left = nn.Linear(8, 6)
        self.stem = nn.Linear(72, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        stem = torch.tanh(self.stem(x))
        scores: Tensor = self.head(torch.cat((self.left(stem) * self.right(stem), self.around(x)), 1))
        return scores


class Reused(nn.Module):
    """One module is called three times, another one before and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(6, 6)
        self.between = nn.Linear(6, 6)
        self.head = nn.Linear(72, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.again(x))
        x = x + self.again(torch.tanh(self.between(self.again(x))))
        scores: Tensor = self.head(torch.flatten(x, 1))
        return scores


class Factored(nn.Module):
    """Weights that are computed from parameters, some of them the root's own."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(8, 2))
        self.down = nn.Parameter(0.1 * torch.randn(2, 72))
        self.middle = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(x.flatten(1), self.up @ self.down)
        x = functional.linear(x, self.middle.weight.t().softmax(1), self.middle.bias.exp())
        scores: Tensor = self.head(torch.tanh(x))
        return scores


class Tied(nn.Module):
    """One weight embeds tokens and scores them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.tanh(self.middle(self.embed(x))).mean(1))
        return scores


class Positions(nn.Module):
    """Positions that belong to the root, more of them than there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, LENGTH + 3, WIDTH))
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(torch.tanh(self.middle(self.embed(x) + self.position[:, : x.size(1)])))
        scores: Tensor = self.head(inner.sum(1))
        return scores


class Attention(nn.Module):
    """Attention as torch has it, with the tokens or the examples first."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x) if self.batch_first else self.embed(x).transpose(0, 1)
        attended, weights = self.attention(tokens, tokens, tokens)
        mixed = self.norm(tokens + attended).mean(1 if self.batch_first else 0)
        scores: Tensor = self.head(mixed + weights.amax((1, 2)).unsqueeze(1))
        return scores


def wide_cnn() -> nn.Module:
    """Wide enough for the channels of a pixel to be stored side by side."""
    return nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 17, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(68, CLASSES),
    )  # fmt: skip


def vgg(width: int = 16) -> nn.Module:
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)
        )

    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)
    return nn.Sequential(block(2, width), block(width, width), *ends)


def bare_norms() -> nn.Module:
    """Normalises before any layer, without weights, and without statistics."""
    return nn.Sequential(
        nn.BatchNorm2d(2, affine=False), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh(),
        nn.Flatten(), nn.Linear(48, 6), nn.BatchNorm1d(6, affine=False, momentum=0.3), nn.Tanh(), nn.Linear(6, CLASSES),
    )  # fmt: skip


def cumulative_norm() -> nn.Module:
    """The running statistics are the plain mean over all batches."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=None), nn.Tanh(), nn.Flatten(), nn.Linear(48, CLASSES)
    )


def other_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.LayerNorm([4, 4]), nn.Flatten(), nn.Linear(64, 6),
        nn.LayerNorm(6, elementwise_affine=False), nn.GELU(), nn.Linear(6, CLASSES),
    )  # fmt: skip


def sequences() -> nn.Module:
    """One-dimensional convolutions with BatchNorm."""
    return nn.Sequential(
        Apply(lambda x: x.flatten(2)), nn.Conv1d(2, 3, 5), nn.BatchNorm1d(3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(),
        nn.Linear(48, CLASSES),
    )  # fmt: skip


def frozen() -> nn.Module:
    """Frozen below, in the middle, and half of a normalisation."""
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 6), nn.BatchNorm1d(6), nn.Tanh(),
        nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, CLASSES),
    )  # fmt: skip
    for name in ("0.weight", "0.bias", "5.weight", "7.weight", "7.bias", "9.bias"):
        model.get_parameter(name).requires_grad_(False)
    return model


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Embedding(TOKENS, WIDTH), layer, nn.Flatten(), nn.Linear(LENGTH * WIDTH, CLASSES))


IMAGES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: Mlp(hidden=(8, 6)).build(SHAPE, CLASSES),
    "cnn": lambda: Cnn(channels=(3, 4), kernel=3, padding=1, hidden=(6,)).build(SHAPE, CLASSES),
    "wide-cnn": wide_cnn,
    "vgg": vgg,
    "residual": lambda: ResidualNet(width=3, blocks=(1, 1)).build(SHAPE, CLASSES),
    "transformer": lambda: Transformer(width=8, depth=1, heads=2, patch=3).build(SHAPE, CLASSES),
    "functional": Functional,
    "branches": Branches,
    "reused": Reused,
    "factored": Factored,
    "bare-norms": bare_norms,
    "cumulative-norm": cumulative_norm,
    "other-norms": other_norms,
    "sequences": sequences,
    "frozen": frozen,
}
TEXTS: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "positions": Positions,
    "attention": lambda: Attention(batch_first=True),
    "sequence-first": lambda: Attention(batch_first=False),
    "encoder": encoder,
}
MODELS = IMAGES | TEXTS


def built(make: Callable[[], nn.Module], *, double: bool = False) -> nn.Module:
    """Build a model from a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = make()
    return model.double() if double else model


@cache
def data_for(name: str, *, double: bool = False, examples: int = 40) -> tuple[Tensor, Tensor]:
    """Inputs and labels for one of the models; tokens for those that read texts, otherwise images."""
    draw = torch.Generator().manual_seed(11)
    labels = torch.randint(CLASSES, (examples,), generator=draw)
    if name in TEXTS:
        return torch.randint(TOKENS, (examples, LENGTH), generator=draw), labels
    images = torch.randn(examples, *SHAPE, generator=draw, dtype=torch.float64 if double else torch.float32)
    return images, labels
