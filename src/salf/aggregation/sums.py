"""Running sums of what the contributors of a layer conveyed, wide enough that none of it is rounded away."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

_SINGLE_BYTES = torch.float32.itemsize


@dataclass(slots=True)  # not frozen: that takes several times as long to make
class PartialSum:
    """What the contributors of one layer conveyed, summed by whoever computed it.

    With the weights a_u of `Aggregation.weights` and the progress τ_u of `local_progress`, `weight` is Σ a_u and
    `weighted_steps` Σ a_u τ_u. `deltas`, times `scale`, are Σ s_u Δ_u, where s_u is a_u, times what
    `Aggregation.importance_weights` may say, and divided by τ_u under a rule that normalises by steps; `buffers` holds Σ a_u b_u,
    and the maximum of whole numbers.
    """

    contributors: int
    weight: float
    weighted_steps: float
    deltas: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0


@dataclass(slots=True)
class LayerSum:
    """Running sums of one layer over the updates that conveyed it; `deltas` are yet to be multiplied by `scale`."""

    deltas: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    contributors: int = 0
    weight: float = 0.0
    weighted_steps: float = 0.0
    buffer_weight: float = 0.0
    scale: float = 1.0

    def add(self, deltas: Mapping[str, Tensor], scale: float, weight: float, steps: float) -> None:
        """Add one client's deltas times `scale`; it weighs `weight` and took so many `steps`."""
        self.contributors += 1
        self.weight += weight
        self.weighted_steps += weight * steps
        sums = self.scaled()
        for name, delta in deltas.items():
            _accumulate(sums, name, delta, scale)

    def add_total(self, total: PartialSum) -> None:
        """Add what several clients conveyed; the total is used up."""
        self.contributors += total.contributors
        self.weight += total.weight
        self.weighted_steps += total.weighted_steps
        if self.deltas:
            sums = self.scaled()
            for name, delta in total.deltas.items():
                _accumulate(sums, name, delta, total.scale)
        else:
            self.deltas = {name: _widened(delta) for name, delta in total.deltas.items()}
            self.scale = total.scale
        if total.buffers:
            self.buffer_weight += total.weight
        for name, value in total.buffers.items():
            self._add_buffer(name, value, 1.0)

    def add_buffers(self, buffers: Mapping[str, Tensor], weight: float) -> None:
        """Add one client's buffers, weighed; whole numbers take the maximum."""
        self.buffer_weight += weight
        for name, value in buffers.items():
            self._add_buffer(name, value, weight)

    def scaled(self) -> dict[str, Tensor]:
        """Return the deltas, multiplied by the scale from now on."""
        if self.scale != 1:
            for delta in self.deltas.values():
                delta.mul_(self.scale)
            self.scale = 1.0
        return self.deltas

    def _add_buffer(self, name: str, value: Tensor, weight: float) -> None:
        if value.is_floating_point() or value.is_complex():
            _accumulate(self.buffers, name, value, weight)
        else:
            known = self.buffers.get(name)
            self.buffers[name] = value.clone() if known is None else torch.maximum(known, value)


def _widened(value: Tensor) -> Tensor:
    """Return the same in single precision if its own type is shorter."""
    return value if value.dtype.itemsize >= _SINGLE_BYTES else value.to(torch.promote_types(value.dtype, torch.float32))


def _accumulate(sums: dict[str, Tensor], name: str, value: Tensor, scale: float) -> None:
    """Add scale · value, in single precision where the tensor's own type is shorter."""
    wide = torch.promote_types(value.dtype, torch.float32)
    if name not in sums:
        sums[name] = value.to(wide) * scale
    else:
        sums[name].add_(value, alpha=scale if scale <= torch.finfo(wide).max else math.inf)


def mean_of(old: Tensor, total: Tensor, weight: float) -> Tensor:
    """Return a buffer's mean in the type of its old value; of whole numbers the maximum, which `total` is."""
    return (total / weight).to(old.dtype) if old.is_floating_point() or old.is_complex() else total
