"""Robust aggregation: what replaces the mean of a layer's updates where some clients may be hostile.

`ClippedLayers` bounds the influence of one client and needs no more memory than the mean. The coordinate-wise `Median`
and `TrimmedMean` (Yin et al., "Byzantine-robust distributed learning: towards optimal statistical rates", 2018, arXiv
1803.01498) keep every update of a round until its end.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salf.aggregation.aggregation import Aggregated, Aggregation, combined_buffers
from salf.aggregation.cohort_sums import Reach, Weigh
from salf.aggregation.rules import Rule
from salf.aggregation.sums import PartialSum
from salf.errors import InvalidSetting
from salf.layers import Layers, is_unchanged
from salf.update import Update, check_update


@dataclass(frozen=True)
class ClippedLayers:
    """Shortens a client's update of each layer to a Euclidean norm, over the layer's parameters, of at most `max_norm`.

    >>> from salf.layers import Layer
    >>> layers = Layers((Layer("head", ("head.weight",)),))
    >>> update = Update({"head.weight": torch.tensor([3.0, 4.0])}, steps=1, num_examples=1)
    >>> ClippedLayers(1.0).clip(update, layers).deltas["head.weight"]
    tensor([0.6000, 0.8000])
    """

    max_norm: float

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise InvalidSetting(f"max_norm is {self.max_norm!r}; give a number greater than 0")

    def clip(self, update: Update, layers: Layers) -> Update:
        """Return the update with every layer shortened that is too long; buffers stay as they are."""
        clipped = dict(update.deltas)
        for layer in layers:
            if not update.includes(layer):
                continue
            norm = math.hypot(*(norm_of(update.deltas[name]) for name in layer.parameters))
            if norm > self.max_norm:
                clipped |= {name: update.deltas[name] * (self.max_norm / norm) for name in layer.parameters}
        return replace(update, deltas=clipped)


def norm_of(tensor: Tensor) -> float:
    """Return the Euclidean norm of a tensor, in double precision.

    >>> round(norm_of(torch.tensor([3e30, 4e30])) / 1e30, 6), norm_of(torch.tensor([3.0 + 4.0j]))
    (5.0, 5.0)
    """
    return float(torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float64)))


@dataclass(frozen=True)
class Centre(ABC):
    """A centre of several tensors, coordinate by coordinate, that a few outliers cannot move far.

    >>> class Smallest(Centre):
    ...     def of(self, stacked: Tensor) -> Tensor:
    ...         return stacked.min(dim=0).values
    >>> Smallest().of(torch.tensor([[1.0], [2.0]]))
    tensor([1.])
    """

    @abstractmethod
    def of(self, stacked: Tensor) -> Tensor:
        """Return the centre of tensors stacked along the first dimension, shape (clients, …)."""


@dataclass(frozen=True)
class Median(Centre):
    """The median; the mean of the middle two for an even number of clients."""

    def of(self, stacked: Tensor) -> Tensor:
        """Return the median along the first dimension.

        >>> Median().of(torch.tensor([[1.0], [2.0], [9.0], [4.0]]))
        tensor([3.])
        """
        ranked = stacked.sort(dim=0).values
        return (ranked[(len(stacked) - 1) // 2] + ranked[len(stacked) // 2]) / 2


@dataclass(frozen=True)
class TrimmedMean(Centre):
    """The mean without the highest and the lowest `share` of the values, rounded down to whole clients.

    Args:
        share: What is cut off at each end, from 0 to below 0.5.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.share < 0.5:
            raise InvalidSetting(f"share is {self.share!r}; give a number from 0 to below 0.5")

    def of(self, stacked: Tensor) -> Tensor:
        """Return the trimmed mean along the first dimension.

        >>> TrimmedMean(0.25).of(torch.tensor([[1.0], [2.0], [9.0], [4.0]]))
        tensor([3.])
        """
        cut = int(self.share * len(stacked))
        return stacked.sort(dim=0).values[cut : len(stacked) - cut].mean(dim=0)


class RobustAggregation:
    """`Aggregation` with a centre in place of the mean over a layer's contributors.

    Args:
        state: The global state dict.
        layers: The model's layers.
        rule: Corrects the centre as it would correct the mean; must weigh contributors equally (`check_rule`).
        centre: Replaces the mean.
        reach: As in `aggregate`.

    Raises:
        InvalidSetting: The rule does not weigh contributors equally.

    >>> from salf.aggregation.rules import Contributors
    >>> from salf.layers import Layer
    >>> layers = Layers((Layer("head", ("w",)),))
    >>> running = RobustAggregation({"w": torch.zeros(1)}, layers, Contributors(), Median())
    >>> for value in (1.0, 2.0, 1e6):
    ...     running.add(Update({"w": torch.tensor([value])}, steps=1, num_examples=5))
    >>> running.finish().state
    {'w': tensor([2.])}
    """

    def __init__(
        self, state: Mapping[str, Tensor], layers: Layers, rule: Rule, centre: Centre, *, reach: Reach | None = None
    ) -> None:
        check_rule(rule, centre)
        self._state, self._layers, self._centre = state, layers, centre
        self._running = Aggregation(state, layers, rule, reach=reach)
        self._updates: list[Update] = []

    def add(self, update: Update, position: int | None = None, *, checked: bool = False) -> None:
        """Add one client's update, as `Aggregation.add` does; it stays in memory until `finish`."""
        if not checked:
            check_update(update, self._layers, self._state)
        self._updates.append(update)

    @torch.no_grad()
    def finish(self, num_clients: int | None = None) -> Aggregated:
        """Return the new state, given how many clients were asked (by default, as many as were added)."""
        if self._updates:
            self._running.sums.add_totals(len(self._updates), float(len(self._updates)), self._totals())
        return self._running.finish(num_clients)

    def _totals(self) -> Iterator[PartialSum | None]:
        """Yield, for each layer, the sum that has the centre as its mean."""
        for layer, combined in zip(self._layers, combined_buffers(self._layers, self._state), strict=True):
            sent = [update for update in self._updates if update.includes(layer)]
            if not sent:
                yield None
                continue
            deltas = {name: self._total(name, [update.deltas[name] for update in sent]) for name in layer.parameters}
            carried = [update.buffers for update in sent if all(name in update.buffers for name in layer.buffers)]
            values = {name: [each[name] for each in carried] for name in combined}
            moved = {n: each for n, each in values.items() if not all(is_unchanged(v, self._state[n]) for v in each)}
            buffers = {name: self._total(name, each) for name, each in moved.items()}
            count = len(sent)
            steps = float(sum(update.steps_of(layer.name) for update in sent))
            yield PartialSum(count, float(count), steps, deltas, buffers if len(carried) == count else {})

    def _total(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """Return what has the centre of several values of a tensor of the state as its mean."""
        kind = self._state[name].dtype
        if not kind.is_floating_point:
            return torch.stack([*tensors]).sort(dim=0).values[len(tensors) // 2]
        wide = torch.promote_types(kind, torch.float32)
        return self._centre.of(torch.stack([tensor.to(wide) for tensor in tensors])) * len(tensors)


def check_rule(rule: Rule, centre: Centre, weigh: Weigh = "clients") -> None:
    """Raise `InvalidSetting` unless a centre can replace the mean of a rule, which must weigh contributors equally."""
    name = type(centre).__name__
    if weigh != "clients":
        raise InvalidSetting(f"{name} weighs all contributors equally; leave weigh alone")
    if rule.weighs_layers or rule.needs_individual_updates or rule.memory_bytes is not None:
        raise InvalidSetting(f"{name} weighs all contributors equally, unlike {type(rule).__name__}; use Corrected")
    if not rule.weighs_equally or rule.normalise is not None:
        raise InvalidSetting(f"{name} weighs all contributors equally; leave weight_by_examples and normalise alone")
