"""Averaging sub-models that overlap, element by element."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Overlap:
    """The new global state of HeteroFL, from those of groups of clients with one sub-model each.

    Of a parameter each sub-model holds the first rows, columns, …, a prefix in every dimension. Each element becomes
    Σ_g A_g w_g / Σ_g A_g over the groups g that hold it, with w_g its mean in the group and A_g the sum of the weights
    of the group's clients: its mean over all clients that hold it (arXiv 2010.01264, "Heterogeneous models", where the
    elements are cut into the regions that the levels add). An element that nobody holds stays.

    Sums are taken in double precision: of single-precision parameters a lone group's mean comes out to the last bit.

    >>> overlap = Overlap({"w": torch.zeros(3)})
    >>> overlap.add({"w": torch.tensor([1.0, 1.0])}, weight=3.0)
    >>> overlap.add({"w": torch.tensor([5.0])}, weight=1.0)
    >>> overlap.state()["w"].tolist(), overlap.held()["w"].tolist()
    ([2.0, 1.0, 0.0], [True, True, False])
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, part: Mapping[str, Tensor], weight: float, rows: Mapping[str, Tensor] | None = None) -> None:
        """Add what a group of clients of total weight `weight` > 0 made of its sub-model, by parameter.

        `rows` says, by parameter, which rows the group has a say in, as booleans; all where it says nothing.
        """
        for name, values in part.items():
            weights = torch.full_like(values, weight, dtype=torch.float64)
            if rows is not None and name in rows:
                weights[~rows[name]] = 0.0
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(self._state[name], dtype=torch.float64)
                self._weights[name] = torch.zeros_like(self._sums[name])
            region = tuple(map(slice, values.shape))
            self._sums[name][region] += weights * values
            self._weights[name][region] += weights

    def state(self) -> dict[str, Tensor]:
        """Return the new global state; what no group held is a copy of the old."""
        new = {name: old.clone() for name, old in self._state.items()}
        for name, held in self.held().items():
            new[name][held] = (self._sums[name][held] / self._weights[name][held]).to(new[name].dtype)
        return new

    def held(self) -> dict[str, Tensor]:
        """Return, of each parameter that was added, which elements some group held, as booleans."""
        return {name: weights > 0 for name, weights in self._weights.items()}
