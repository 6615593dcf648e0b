"""Models whose buffers are no statistics."""

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from torch.nn.utils import prune

import salf
from salf.layers import Layers
from salf.update import Update


class Causal(nn.Module):
    """Attention over four positions, with a mask of −∞ and a table of rotations in the state dict."""

    mask: Tensor
    rotary: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 6)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("rotary", torch.outer(torch.arange(4.0), 10000 ** -(torch.arange(6) / 6)).cos())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        turned = self.project(x.view(-1, 4, 6) * self.rotary)
        scores = (turned @ turned.transpose(1, 2) + self.mask).softmax(-1)
        result: Tensor = self.head((scores @ turned).mean(1))
        return result


class Moco(nn.Module):
    """An encoder with a queue of keys, as in MoCo: the pointer of the queue moves in every pass."""

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
        self.register_buffer("queue", torch.randn(5, 12))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        keys: Tensor = self.encoder(x)
        logits = keys @ self.queue.clone()
        start = int(self.queue_ptr)
        self.queue[:, start : start + len(x)] = keys.detach().T
        self.queue_ptr[0] = (start + len(x)) % 12
        return logits


def pruned() -> nn.Module:
    """Return a model of which half of the first layer's weights are pruned."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    prune.l1_unstructured(model[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    return model


def quantized() -> nn.Module:
    """Return a model for quantization-aware training."""
    fake = FakeQuantize(MovingAverageMinMaxObserver, 0, 255)  # type: ignore[no-untyped-call]
    return nn.Sequential(nn.Linear(6, 5), fake, nn.Linear(5, 3))


def trained(model: nn.Module, layers: Layers, inputs: Tensor, start: dict[str, Tensor]) -> Update:
    """Return a client's update after two steps from a state; the sum of the outputs' squares is its loss."""
    model.load_state_dict(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with salf.deadline(model, optimizer, seconds=60, layers=layers) as work:
        for batch in inputs.chunk(2):
            optimizer.zero_grad()
            model(batch).square().sum().backward()
            optimizer.step()
    return work.update(num_examples=len(inputs))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
