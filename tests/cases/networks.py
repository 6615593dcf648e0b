"""Small networks of every kind that a deadline must support, each with batches to train it."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer


@dataclass(frozen=True)
class Task:
    model: nn.Module
    batches: tuple[tuple[Tensor, Tensor], ...]

    @property
    def example(self) -> Tensor:
        return self.batches[0][0]

    def loss(self, step: int = 0) -> Tensor:
        inputs, labels = self.batches[step % len(self.batches)]
        scores = self.model(inputs)
        return functional.cross_entropy(scores.flatten(0, -2), labels.flatten())

    def twin(self) -> "Task":
        return Task(copy.deepcopy(self.model), self.batches)


def backward(loss: Tensor, *, retain_graph: bool = False) -> None:
    loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]


def train(task: Task, optimizer: Optimizer, steps: int = 1000, first: int = 0) -> None:
    """A training loop that does nothing about deadlines."""
    for step in range(first, first + steps):
        optimizer.zero_grad()
        backward(task.loss(step))
        optimizer.step()


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Mlp(nn.Sequential):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        for place, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            self.add_module(f"fc{place}", nn.Linear(inputs, outputs))
            if place < len(sizes) - 1:
                self.add_module(f"relu{place}", nn.ReLU())


class Cnn(nn.Sequential):
    """The paper's network for MNIST."""

    def __init__(self) -> None:
        super().__init__()
        for place, channels in ((1, 1), (2, 6)):
            self.add_module(f"conv{place}", nn.Conv2d(channels, 6, 5))
            self.add_module(f"relu{place}", nn.ReLU())
            self.add_module(f"pool{place}", nn.MaxPool2d(2))
        self.add_module("flatten", nn.Flatten())
        self.add_module("fc1", nn.Linear(96, 50))
        self.add_module("relu3", nn.ReLU())
        self.add_module("fc2", nn.Linear(50, 10))


class Residual(nn.Module):
    """A residual network with BatchNorm and two blocks; the second has a convolution on its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.block1 = _ResidualBlock(4, 4)
        self.block2 = _ResidualBlock(4, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(functional.relu(self.norm(self.conv(x)))))
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(inner + self.shortcut(x))


class TiedTransformer(nn.Module):
    """Predicts tokens with the weight that embeds them; the positions belong to the model itself."""

    def __init__(self, tokens: int = 7, length: int = 6, width: int = 8) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(length, width))
        self.embed = nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(_Attention(width), _Attention(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.norm(self.blocks(self.embed(x) + self.position)))
        return scores


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out(functional.scaled_dot_product_attention(query, key, value))
        mixed: Tensor = x + self.contract(functional.gelu(self.expand(self.norm2(x))))
        return mixed


class Lora(nn.Module):
    """Two frozen matrices, each with a trainable adapter of rank 2, and a trainable head."""

    def __init__(self) -> None:
        super().__init__()
        self.lower = _Adapted(6, 8)
        self.upper = _Adapted(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.upper(torch.relu(self.lower(x)))))
        return scores


class _Adapted(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down = nn.Linear(inputs, 2, bias=False)
        self.up = nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = self.base(x) + self.up(self.down(x))
        return adapted


class Misordered(nn.Module):
    """Declares its layers in an order that is not the one in which it calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.middle = nn.Linear(5, 4)
        self.stem = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.middle(torch.relu(self.stem(x)))))
        return scores


class Nested(nn.Module):
    """Owns parameters at three depths of its tree of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.body = nn.Sequential(_Scaled(nn.Sequential(nn.Linear(6, 6), nn.Tanh())), _Scaled(nn.Linear(6, 6)))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x * self.scale))
        return scores


class _Scaled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.gain * self.inner(x))


class WithUnused(nn.Module):
    """One module is never called, and one that is called owns a parameter that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 5)
        self.idle = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)
        self.head.register_parameter("idle", nn.Parameter(torch.ones(2)))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.stem(x)))
        return scores


class Counting(nn.Module):
    """Counts its inputs in integer buffers of each layer; `rows` is replaced, `calls` changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Counted(6, 5)
        self.head = _Counted(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.stem(x)))
        return scores


class _Counted(nn.Linear):
    calls: Tensor
    rows: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("rows", torch.tensor(0))

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        self.rows = self.rows + len(input)
        return super().forward(input)


def _vectors(make: Callable[[], nn.Module], size: int = 6, classes: int = 3) -> Callable[[], Task]:
    return lambda: _task(make, lambda: torch.randn(5, size), lambda: torch.randint(classes, (5,)))


def _task(make: Callable[[], nn.Module], inputs: Callable[[], Tensor], labels: Callable[[], Tensor]) -> Task:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return Task(make(), tuple((inputs(), labels()) for _ in range(4)))


def mlp_task(sizes: Sequence[int] = (6, 8, 7, 3)) -> Task:
    return _vectors(lambda: Mlp(*sizes), sizes[0], sizes[-1])()


TASKS: dict[str, Callable[[], Task]] = {
    "cnn": lambda: _task(Cnn, lambda: torch.randn(3, 1, 28, 28), lambda: torch.randint(10, (3,))),
    "residual": lambda: _task(Residual, lambda: torch.randn(4, 1, 6, 6), lambda: torch.randint(5, (4,))),
    "transformer": lambda: _task(TiedTransformer, lambda: torch.randint(7, (2, 6)), lambda: torch.randint(7, (2, 6))),
    "mlp": mlp_task,
    "lora": _vectors(Lora),
    "misordered": _vectors(Misordered),
    "nested": _vectors(Nested),
    "unused": _vectors(WithUnused),
    "counting": _vectors(Counting),
}
