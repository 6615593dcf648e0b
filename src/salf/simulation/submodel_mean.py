"""The mean of sub-models that overlap, element by element."""

from collections.abc import Mapping

import torch
from torch import Tensor


class SubmodelMean:
    """The new global state, from the results of groups of clients with one sub-model each.

    A sub-model holds the first rows, columns, … of a parameter: a prefix in every dimension. Each element becomes
    Σ_g A_g w_g / Σ_g A_g over the groups g that hold it, with w_g its mean in the group and A_g the sum of the weights
    of the group's clients. This is its mean over all clients that hold it (HeteroFL, arXiv 2010.01264). An element that
    no group holds stays.

    Sums have double precision, so the mean of a single group in single precision stays exact to the last bit.

    Args:
        state: The global state dict before the round.

    >>> mean = SubmodelMean({"w": torch.zeros(3)})
    >>> mean.add({"w": torch.tensor([1.0, 1.0])}, weight=3.0)
    >>> mean.add({"w": torch.tensor([5.0])}, weight=1.0)
    >>> mean.state()["w"].tolist(), mean.held()["w"].tolist()
    ([2.0, 1.0, 0.0], [True, True, False])
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, part: Mapping[str, Tensor], weight: float, rows: Mapping[str, Tensor] | None = None) -> None:
        """Add the result of a group.

        Args:
            part: The group's mean of each parameter that it has trained.
            weight: The total weight of its clients, greater than 0.
            rows: Which rows of a parameter the group holds, as booleans, by parameter; all of them where it is missing.
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
        """Return the new global state dict; elements that no group holds are copies of the old ones."""
        new = {name: old.clone() for name, old in self._state.items()}
        for name, held in self.held().items():
            new[name][held] = (self._sums[name][held] / self._weights[name][held]).to(new[name].dtype)
        return new

    def held(self) -> dict[str, Tensor]:
        """Return which elements some group holds, as booleans, for each parameter that was added."""
        return {name: weights > 0 for name, weights in self._weights.items()}
