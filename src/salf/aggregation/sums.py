"""Running sums of what the contributors of a layer sent, in a type wide enough for rounding not to add up."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from salf.layers import is_continuous
from salf.values import Floats

_SINGLE_BYTES = torch.float32.itemsize


def local_progress(steps: npt.ArrayLike, momentum: float) -> Floats:
    """Return how far so many local steps go: the sum ‖a‖₁ of the weights with which their gradients enter Δ.

    For SGD with momentum ρ that is (τ − ρ (1 − ρ^τ)/(1 − ρ)) / (1 − ρ) (FedNova, arXiv 2007.07481, §4).

    >>> local_progress([1, 2], momentum=0.5)  # after two steps the first gradient has entered as 1 + 0.5
    array([1. , 2.5])
    """
    taken = np.asarray(steps, dtype=np.float64)
    rest = 1 - momentum
    return np.asarray((taken - momentum * (1 - momentum**taken) / rest) / rest, dtype=np.float64)


@dataclass(slots=True)  # not frozen: that takes several times as long to make
class PartialSum:
    """What several contributors of one layer sent, already summed by an engine.

    w_{u,l} is a client's weight in the layer and τ_u its `local_progress`. `CohortSums` gives the weights.

    Attributes:
        contributors: How many clients sent the layer.
        weight: Σ a_u over them.
        weighted_steps: Σ a_u τ_u over them.
        deltas: By parameter, what gives Σ w_{u,l} Δ_u when multiplied by `scale`; under a rule that normalises by
            steps each Δ_u is divided by τ_u.
        buffers: By buffer that has changed, Σ a_u b_u; the maximum for whole numbers.
        scale: A factor of all deltas that is still to be applied.
    """

    contributors: int
    weight: float
    weighted_steps: float
    deltas: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0


@dataclass(slots=True)
class LayerSum:
    """Running sums of one layer over the updates that hold it; `deltas` are yet to be multiplied by `scale`.

    A contributor weighs a_u n_u, where n_u is its number of examples over that of the first contributor, so that equal
    numbers weigh exactly a_u.

    Attributes:
        weight: Σ a_u.
        weighted_examples: Σ a_u n_u.
        weighted_steps: Σ a_u n_u τ_u.
        buffer_weight: Σ a_u n_u over the contributors that sent buffers.
        unchanged: By buffer, the part of this weight whose value is the state's, which is not in `buffers`.
    """

    deltas: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    contributors: int = 0
    weight: float = 0.0
    weighted_examples: float = 0.0
    weighted_steps: float = 0.0
    buffer_weight: float = 0.0
    unchanged: dict[str, float] = field(default_factory=dict)
    scale: float = 1.0
    _unit: int = 0

    @property
    def factor(self) -> float:
        """What makes the contributors' weights a_u n_u sum to Σ a_u."""
        return self.weight / self.weighted_examples

    @property
    def mean_steps(self) -> float:
        """The contributors' weighted mean of τ_u."""
        return self.weighted_steps / self.weighted_examples

    def relative(self, examples: int) -> float:
        """Return n_u of a contributor with so many examples in the layer; the first one is the unit."""
        self._unit = self._unit or examples
        return examples / self._unit

    def add(self, deltas: Mapping[str, Tensor], scale: float, weight: float, steps: float, examples: float = 1) -> None:
        """Add one client's update of the layer.

        Args:
            deltas: The client's Δ by parameter; empty if it counts as a contributor only.
            scale: The factor of the deltas.
            weight: The client's weight a_u.
            steps: The client's progress τ_u.
            examples: The client's n_u, from `relative`.
        """
        self.contributors += 1
        self.weight += weight
        self.weighted_examples += weight * examples
        self.weighted_steps += weight * examples * steps
        sums = self.scaled()
        for name, delta in deltas.items():
            _accumulate(sums, name, delta, scale * examples)

    def add_total(self, total: PartialSum) -> None:
        """Add what several clients sent; the total is used up."""
        self.contributors += total.contributors
        self.weight += total.weight
        self.weighted_examples += total.weight
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

    def add_buffers(self, buffers: Mapping[str, Tensor], weight: float, unchanged: Collection[str] = ()) -> None:
        """Add one client's buffers times its weight; whole numbers take the maximum.

        Args:
            buffers: The buffers that were sent.
            weight: The client's weight a_u n_u.
            unchanged: The names of those floating-point ones that equal the state's.
        """
        self.buffer_weight += weight
        for name, value in buffers.items():
            if name in unchanged:
                self.unchanged[name] = self.unchanged.get(name, 0.0) + weight
            else:
                self._add_buffer(name, value, weight)

    def buffer_mean(self, name: str, old: Tensor) -> Tensor:
        """Return a buffer's mean in the type of its old value; for whole numbers, the maximum."""
        total, stayed = self.buffers[name], self.unchanged.get(name)
        if not is_continuous(old):
            return total
        if stayed is not None:
            total = total + old.to(total.dtype) * stayed
        return (total / self.buffer_weight).to(old.dtype)

    def scaled(self) -> dict[str, Tensor]:
        """Return the deltas, multiplied by the scale from now on."""
        if self.scale != 1:
            for delta in self.deltas.values():
                delta.mul_(self.scale)
            self.scale = 1.0
        return self.deltas

    def _add_buffer(self, name: str, value: Tensor, weight: float) -> None:
        if is_continuous(value):
            _accumulate(self.buffers, name, value, weight)
        else:
            known = self.buffers.get(name)
            self.buffers[name] = value.clone() if known is None else torch.maximum(known, value)


def _widened(value: Tensor) -> Tensor:
    """Return a tensor in single precision at least."""
    return value if value.dtype.itemsize >= _SINGLE_BYTES else value.to(torch.promote_types(value.dtype, torch.float32))


def _accumulate(sums: dict[str, Tensor], name: str, value: Tensor, scale: float) -> None:
    """Add scale · value, in single precision at least."""
    wide = torch.promote_types(value.dtype, torch.float32)
    if name not in sums:
        sums[name] = value.to(wide) * scale
    else:
        sums[name].add_(value, alpha=scale if scale <= torch.finfo(wide).max else math.inf)


def at_home(old: Tensor, value: Tensor) -> Tensor:
    """Return what a client sent for `old` on its device, and widened if it is of another floating-point type."""
    if value.dtype == old.dtype:
        return value.to(old.device)
    return value.to(old.device, torch.promote_types(old.dtype, torch.float32))
