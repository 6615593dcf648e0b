"""Asynchronous aggregation: clients' models move the server's model one by one, or in buffers of several.

All functions take and return whole state dicts. Floating-point numbers are combined in single precision at least;
whole numbers, such as BatchNorm's counters, take the maximum.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from salf.layers import is_continuous
from salf.update import all_finite

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class ClientResult:
    """A client's model as it reaches the server.

    Attributes:
        start: The state dict with which the client began.
        model: The state dict after its training.
        staleness: How often the server's model has moved since the client received `start`.
    """

    start: Weights
    model: Weights
    staleness: int


@dataclass(frozen=True)
class Buffer:
    """The results that arrived since the server's model last moved.

    Attributes:
        sums: Σ s_i (model − start) by name, where s_i is the scale of a result; Σ s_i model for BatchNorm's statistics.
        scale: Σ s_i.
        count: The number of results.
    """

    sums: Weights = field(default_factory=dict)
    scale: float = 0.0
    count: int = 0

    @torch.no_grad()
    def add(self, result: ClientResult, scale: float, statistics: Collection[str]) -> "Buffer":
        """Return the buffer with one more result.

        Args:
            result: A client's model.
            scale: The scale s_i of the result, for instance a discount for its staleness.
            statistics: The names of floating-point buffers, which are averaged as values, not as differences.
        """
        sums = {}
        for name, new in result.model.items():
            known = self.sums.get(name)
            if not is_continuous(new):
                sums[name] = new if known is None else torch.maximum(known, new)
                continue
            own = _wide(new) if name in statistics else _wide(new) - _wide(result.start[name])
            sums[name] = own * scale if known is None else known + own * scale
        return Buffer(sums, self.scale + scale, self.count + 1)

    @torch.no_grad()
    def move(self, weights: Weights, lr: float, statistics: Collection[str]) -> Weights:
        """Return `weights` moved by `lr` times the mean of the scaled differences.

        The statistics become the mean of the clients', weighted by the scales: `lr` never extrapolates them.

        Args:
            weights: The server's state dict.
            lr: The server's step size.
            statistics: The names of floating-point buffers.

        >>> results = [ClientResult({"w": torch.zeros(1)}, {"w": torch.tensor([value])}, 0) for value in (1.0, 3.0)]
        >>> buffer = Buffer().add(results[0], 1.0, ()).add(results[1], 0.5, ())
        >>> buffer.move({"w": torch.tensor([10.0])}, 1.0, ())["w"].item()  # 10 + (1 · 1 + 0.5 · 3) / 2
        11.25
        """
        moved = {}
        for name, old in weights.items():
            total = self.sums[name]
            if not is_continuous(old):
                moved[name] = torch.maximum(old, total)
            elif name in statistics:
                moved[name] = (total / self.scale).to(old.dtype)
            else:
                moved[name] = (_wide(old) + total * (lr / self.count)).to(old.dtype)
        return _within_range(moved, weights)


@dataclass(frozen=True)
class ServerModel:
    """The server's model in asynchronous training.

    Attributes:
        weights: The state dict.
        version: How often it has moved.
        buffer: The results that wait to move it again.
    """

    weights: Weights
    version: int = 0
    buffer: Buffer = field(default_factory=Buffer)


@torch.no_grad()
def mix(weights: Weights, model: Weights, share: float) -> Weights:
    """Return (1 − share) · weights + share · model, for a share between 0 and 1; whole numbers take the maximum.

    >>> mix({"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])}, 0.25)["w"].item()
    2.0
    """
    mixed = {
        name: torch.lerp(_wide(old), _wide(model[name]), share).to(old.dtype)
        if is_continuous(old)
        else torch.maximum(old, model[name])
        for name, old in weights.items()
    }
    return _within_range(mixed, weights)


def _within_range(after: Weights, before: Weights) -> Weights:
    """Return the weights `after` a move, or those `before` it if a value is no longer finite."""
    if all_finite([*after.values()]):
        return after
    # A value that is not finite was so before, such as that of a mask.
    after = {name: torch.where(before[name].isfinite(), value, before[name]) for name, value in after.items()}
    masked = [torch.where(before[name].isfinite(), value, 0) for name, value in after.items()]
    return after if all_finite(masked) else before


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
