"""What becomes of the server's model when clients' models reach it one by one.

All functions take and return whole state dicts. Floating-point numbers are combined in single precision at least;
whole numbers, such as BatchNorm's counters, take the maximum.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from salf.update import all_finite

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class ClientResult:
    """A client's model as it reaches the server: `model` is what training has made of `start`.

    `staleness` counts how often the server's model has moved since the client was given `start`.
    """

    start: Weights
    model: Weights
    staleness: int


@dataclass(frozen=True)
class Buffer:
    """What has been received since the server's model last moved: `count` arrivals, with scales s_i of sum `scale`.

    `sums` holds Σ s_i (model − start), and for BatchNorm's statistics Σ s_i model.
    """

    sums: Weights = field(default_factory=dict)
    scale: float = 0.0
    count: int = 0

    @torch.no_grad()
    def add(self, arrival: ClientResult, scale: float, statistics: Collection[str]) -> "Buffer":
        """Return the buffer with one arrival more, scaled by `scale`. `statistics` names floating-point buffers."""
        sums = {}
        for name, new in arrival.model.items():
            known = self.sums.get(name)
            if not _is_continuous(new):
                sums[name] = new if known is None else torch.maximum(known, new)
                continue
            own = _wide(new) if name in statistics else _wide(new) - _wide(arrival.start[name])
            sums[name] = own * scale if known is None else known + own * scale
        return Buffer(sums, self.scale + scale, self.count + 1)

    @torch.no_grad()
    def move(self, weights: Weights, lr: float, statistics: Collection[str]) -> Weights:
        """Return `weights` moved by `lr` times the mean of the scaled differences.

        The statistics become the mean of the arrivals', weighted by the scales: `lr` never extrapolates them.

        >>> arrivals = [ClientResult({"w": torch.zeros(1)}, {"w": torch.tensor([value])}, 0) for value in (1.0, 3.0)]
        >>> buffer = Buffer().add(arrivals[0], 1.0, ()).add(arrivals[1], 0.5, ())
        >>> buffer.move({"w": torch.tensor([10.0])}, 1.0, ())["w"].item()  # 10 + (1 · 1 + 0.5 · 3) / 2
        11.25
        """
        moved = {}
        for name, old in weights.items():
            total = self.sums[name]
            if not _is_continuous(old):
                moved[name] = torch.maximum(old, total)
            elif name in statistics:
                moved[name] = (total / self.scale).to(old.dtype)
            else:
                moved[name] = (_wide(old) + total * (lr / self.count)).to(old.dtype)
        return _within_range(moved, weights)


@dataclass(frozen=True)
class ServerModel:
    """The server's model, which has moved `version` times, and what waits to move it again."""

    weights: Weights
    version: int = 0
    buffer: Buffer = field(default_factory=Buffer)


@torch.no_grad()
def mix(weights: Weights, model: Weights, share: float) -> Weights:
    """Return (1 − share) · weights + share · model, for a share between 0 and 1.

    >>> mix({"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])}, 0.25)["w"].item()
    2.0
    """
    mixed = {
        name: torch.lerp(_wide(old), _wide(model[name]), share).to(old.dtype)
        if _is_continuous(old)
        else torch.maximum(old, model[name])
        for name, old in weights.items()
    }
    return _within_range(mixed, weights)


def _within_range(after: Weights, before: Weights) -> Weights:
    """Return the weights `after` a move, or those `before` it where it has left the range of their number type."""
    return after if all_finite([*after.values()]) else before


def _is_continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
