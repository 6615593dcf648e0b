"""The clients of a round in the order in which the fused engine computes them: by depth, the deepest first."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from salf.aggregation import CohortSums
from salf.engines.tasks import Tasks
from salf.errors import InvalidSetting
from salf.values import Floats, Ints


@dataclass(slots=True, eq=False)  # not frozen: that takes several times as long to make
class SortedCohort:
    """The clients of a round that finish some layer, the deepest first; a row of each array belongs to one client.

    Attributes:
        tasks: The tasks of the whole cohort.
        places: The clients' rows in `tasks`, shape (clients,).
        batches: The indices of their examples, shape (clients, batch); −1 fills smaller batches.
        bounds: Where each client's examples begin among all of them, and the end of the last.
        reaching: How many clients reach each layer, input to output.
        own_weights: a_u, shape (clients,); None if each client weighs 1.
        importance_weights: w_{u,l}/a_u, shape (clients, layers); None if clients count by their weights alone.
        weight_of_all: Σ a_u, including clients that finish no layer.
    """

    tasks: Tasks
    places: Ints
    batches: Ints
    bounds: Sequence[int]
    reaching: list[int]
    own_weights: Floats | None
    importance_weights: Floats | None
    weight_of_all: float

    @property
    def steps(self) -> Ints:
        """How many steps each layer takes, shape (clients, layers)."""
        return self.tasks.steps.take(self.places, axis=0)

    @property
    def weights(self) -> Floats:
        """a_u, shape (clients,)."""
        return np.ones(len(self.places)) if self.own_weights is None else self.own_weights

    @property
    def weight_reaching(self) -> list[float]:
        """Σ a_u over the clients that reach each layer."""
        if self.own_weights is None:
            return [float(count) for count in self.reaching]
        weights: list[float] = (self.own_weights @ self.steps).tolist()
        return weights

    @property
    def examples(self) -> Ints:
        """The indices of the examples of all clients, one client after the other."""
        return self.batches.ravel() if self.tasks.full else self.batches[self.batches >= 0]

    @property
    def _equal(self) -> bool:
        """Whether all examples count equally."""
        return self.tasks.full and self.own_weights is None and self.importance_weights is None

    def scale(self, rate: float) -> float:
        """Return the factor of the gradient of each example's loss, if it is the same for all examples; else 1.

        The factor is `rate`, times the client's weight in the last layer, divided by the number of its examples.
        """
        return rate / self.batches.shape[1] if self._equal else 1.0

    def factors(self, rate: float) -> Tensor | None:
        """Return the factor of the gradient of each example's loss, shape (examples,); None if `scale` gives it."""
        if self._equal:
            return None
        sizes = np.diff(self.bounds)
        scales = self.weights if self.importance_weights is None else self.weights * self.importance_weights[:, -1]
        return torch.from_numpy(np.repeat(scales * (rate / sizes), sizes))

    def parts(self, most: int) -> Iterator["SortedCohort"]:
        """Split the clients in parts of at most `most` examples, but at least one client."""
        bounds, first = self.bounds, 0
        if 0 < bounds[-1] <= most:
            yield self
            return
        while first < len(self.places):
            last = max(first + 1, bisect_right(bounds, bounds[first] + most) - 1)
            yield self._part(first, last)
            first = last

    def _part(self, first: int, last: int) -> "SortedCohort":
        """Return the clients from place `first` to before `last`."""
        own = slice(first, last)
        reaching = [min(max(count - first, 0), last - first) for count in self.reaching]
        weights, importance = (None if of is None else of[own] for of in (self.own_weights, self.importance_weights))
        batches, places, tasks = self.batches[own], self.places[own], self.tasks
        bounds = _bounds(batches, full=tasks.full)
        return SortedCohort(tasks, places, batches, bounds, reaching, weights, importance, self.weight_of_all)


def sort_cohort(tasks: Tasks, sums: CohortSums, *, alike: bool = True) -> SortedCohort:
    """Return the clients by depth, with the weights that an aggregation gives them.

    Args:
        tasks: What the clients compute.
        sums: Gives the weights.
        alike: Whether weights that are all 1 may be left out.
    """
    weights = None if alike and sums.weighs_equally else sums.weights(tasks.num_examples)
    return sort_by_depth(tasks, weights, sums.importance_weights(tasks.steps))


def sort_by_depth(
    tasks: Tasks, weights: Floats | None = None, importance_weights: Floats | None = None
) -> SortedCohort:
    """Return the clients by depth. Raises `InvalidSetting` for steps that the fused engine cannot compute."""
    depths = np.add.reduce(tasks.steps, axis=1)  # faster than the array's methods for so few numbers
    reaching = _reaching(tasks.steps, depths)
    # Also by number, so that the order of the rows does not matter.
    order = np.lexsort((tasks.clients, -depths))[: reaching[-1]]
    batches = tasks.batches[:, 0].take(order, axis=0)
    bounds = _bounds(batches, full=tasks.full)
    weight_of_all = float(len(depths) if weights is None else weights.sum())
    own, importance = (None if of is None else of[order] for of in (weights, importance_weights))
    return SortedCohort(tasks, order, batches, bounds, reaching, own, importance, weight_of_all)


def _reaching(steps: Ints, depths: Ints) -> list[int]:
    """Return how many clients reach each layer. Raises `InvalidSetting` unless they take one step from the output on.

    Rows of zeros and ones whose ones are all at their ends are recognized by the sums of their columns: with given
    sums of the rows, no other rows have the same.
    """
    deep = np.bincount(depths, minlength=steps.shape[1] + 1).tolist()
    reaching = [*accumulate(deep[:0:-1])]
    several = np.maximum.reduce(steps, axis=None, initial=0) > 1
    if several or np.add.reduce(steps).tolist() != reaching:
        raise InvalidSetting(
            "the fused engine computes one step, from the output on; use the plain engine for other tasks"
        )
    return reaching


def _bounds(batches: Ints, *, full: bool) -> Sequence[int]:
    """Return where each client's examples begin among those of all, and the end of the last."""
    if full:
        return range(0, batches.size + 1, batches.shape[1])
    return [0, *(batches >= 0).sum(axis=1).cumsum().tolist()]
