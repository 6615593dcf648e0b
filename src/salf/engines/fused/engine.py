"""The engine for one local step: all clients in one pass, whose layer l backpropagates what belongs to U_l only."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from salf.aggregation import Aggregation, PartialSum
from salf.engines.accelerator import ROOMIER
from salf.engines.fused.chain import ChainPass, find_chain
from salf.engines.fused.nested import NestedPass
from salf.engines.fused.rows import GradOutput, SortedClients
from salf.engines.fused.tracing import trace_rows
from salf.engines.plain import PlainEngine
from salf.engines.tasks import OptimizerSettings, Tasks, add_each
from salf.errors import InvalidSetting
from salf.layers import Layer, Layers
from salf.update import Update
from salf.values import Floats, Ints

_SINGLE_BYTES = torch.float32.itemsize
# How large the results of all operations on the examples of one pass may be together.
MEMORY_BYTES = 256 * 2**20
# On a CPU passes whose results, the examples apart, stay in its cache are faster, unless calling costs more.
_CACHE_BYTES = 12 * 2**20
_WORTH_A_PASS = 256
# Convolutions of at least so many channels are faster there with the channels of a pixel side by side.
_CHANNELS_LAST_FROM = 16


class FusedEngine:
    """Computes the sums of a round's updates in one forward and one backward pass over the examples of all clients.

    Clients must take one step of plain SGD; in a single step from the global weights neither momentum nor a proximal
    term changes anything. Whose update is to blame for a sum that is not finite, the plain engine `one_by_one` finds
    out. A rule that needs each client's own update, not their sum, gets it where the model is a chain: then only the
    gradients of the weights are computed client by client. The model is copied, never changed; models whose rows depend
    on each other other than by batch normalisation, by each client's own statistics, raise `UnsuitableModel`.
    """

    name = "fused"
    at_once = True

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        inputs: Tensor,
        labels: Tensor,
        optimisation: OptimizerSettings,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        if optimisation.optimizer != "sgd":
            raise InvalidSetting(
                f"the fused engine sums gradients, which {optimisation.optimizer} does not do; use sgd"
            )
        traced = trace_rows(model, inputs[[0, min(1, len(inputs) - 1), 0]])
        each = max(1, traced.bytes_per_example)
        computed = max(1, each - inputs[0].nbytes)
        cached = max(_CACHE_BYTES // computed, _WORTH_A_PASS)
        self._most = max(1, min(memory_bytes // each, cached) if inputs.is_cpu else ROOMIER * memory_bytes // each)
        self._pass = find_chain(traced, layers) or NestedPass(traced, layers)
        self.one_by_one = PlainEngine(model, layers, inputs, labels, optimisation)
        self._layers, self._labels, self._optimisation = layers, labels, optimisation
        self._inputs = self._pass.prepared(inputs)
        self._room = inputs.new_empty(0)
        # Whether sums of gradients can wait to be scaled: in half precision they would leave its range.
        self._wide = all(value.dtype.itemsize >= _SINGLE_BYTES for value in self._pass.parameters.values())
        owner = {name: index for index, layer in enumerate(layers) for name in layer.buffers}
        self._norms = [
            (norm, next((owner[name] for name in norm.names.values() if name in owner), None))
            for norm in self._pass.norms.values()
        ]
        channels = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
        self._channels_last = (
            inputs.is_cpu and self._inputs.ndim == 4 and min(channels, default=0) >= _CHANNELS_LAST_FROM
        )

    @property
    def layers_apart(self) -> bool:
        """Whether each layer can weigh clients in its own way, as `InverseProbability` does."""
        return self._pass.layers_apart

    @property
    def clients_apart(self) -> bool:
        """Whether each client's own update can be told, as `Memory` needs it."""
        return self._pass.clients_apart

    def train_cohort(self, weights: Mapping[str, Tensor], tasks: Tasks, running: Aggregation) -> npt.NDArray[np.bool_]:
        """Add what the clients convey; return whose updates were accepted, shape (clients,).

        Sums are added as they are: whether they are finite shows when the aggregation is finished.
        """
        if running.sums.needs_individual_updates:
            return add_each(running, tasks, self._updates(weights, tasks))
        cohort = _sorted(tasks, running, alike=self._wide)
        running.sums.add_totals(len(tasks.clients), cohort.weight_of_all, self._totals(weights, cohort))
        return np.ones(len(tasks.clients), dtype=np.bool_)

    def _updates(self, weights: Mapping[str, Tensor], tasks: Tasks) -> dict[int, Update]:
        """Return the update of each client that conveys something, by its place in the tasks."""
        if not isinstance(self._pass, ChainPass):  # which alone tells clients apart
            raise InvalidSetting("the fused engine computes sums, but each client's own update is asked for")
        cohort, updates = _in_order(tasks, np.ones(len(tasks.clients))), {}
        self._pass.load(weights)
        for part in cohort.parts(self._most):
            found = self._pass.gradients_of_each(*self._asked(part))
            for place, steps, moves in zip(part.places.tolist(), part.steps, found, strict=True):
                layers = [layer for layer, reached in zip(self._layers, steps, strict=True) if reached]
                updates[place] = self._update(weights, layers, moves, int(tasks.num_examples[place]))
        return updates

    def _update(
        self, weights: Mapping[str, Tensor], layers: Sequence[Layer], moves: Mapping[str, Tensor], num_examples: int
    ) -> Update:
        """Return what a client conveys, given −η ∇F of the layers that it reaches."""
        decay = -self._optimisation.lr * self._optimisation.weight_decay
        names = [name for layer in layers for name in layer.parameters]
        deltas = {
            name: moves[name].add(weights[name], alpha=_alpha(decay, moves[name])) if decay else moves[name]
            for name in names
        }
        buffers = {name: weights[name] for layer in layers for name in layer.buffers}
        return Update(deltas, {layer.name: 1 for layer in layers}, num_examples, buffers)

    def _totals(self, weights: Mapping[str, Tensor], cohort: "_Cohort") -> list[PartialSum | None]:
        """Return the sums of what the clients convey, None for layers without contributors."""
        self._pass.load(weights)
        moves: dict[str, Tensor] = {}
        buffers: dict[str, Tensor] = {}
        for part in cohort.parts(self._most):
            some, seen = self._backward(weights, part)
            for name, value in some.items():
                moves[name] = moves[name].add_(value) if name in moves else value
            for name, value in seen.items():
                whole = not value.is_floating_point()
                buffers[name] = value if name not in buffers or whole else buffers[name] + value
        return self._layer_totals(weights, cohort, moves, buffers)

    def _backward(
        self, weights: Mapping[str, Tensor], cohort: "_Cohort"
    ) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
        """Return −η Σ s_u ∇F_u by parameter, or what of it is reached, and Σ a_u b_u for buffers that changed."""
        gradients = self._pass.gradients(*self._asked(cohort))
        seen: dict[str, Tensor] = {}
        if self._norms:
            own = torch.from_numpy(cohort.weights)
            for norm, _ in self._norms:
                seen |= norm.sums(own, weights)
        return gradients, seen

    def _asked(self, cohort: "_Cohort") -> tuple[Tensor, SortedClients, GradOutput]:
        """Return what a pass over some clients takes: their examples, who they are, and what they minimise."""
        index = torch.from_numpy(cohort.examples).to(self._inputs.device)
        crowd = SortedClients(cohort.bounds, cohort.reaching, self._factors(cohort))
        for norm, layer in self._norms:
            norm.begin(0 if layer is None else crowd.reaching[layer], self._inputs.device)
        slope_of = partial(_slope, self._labels.index_select(0, index), cohort.factors(-self._optimisation.lr))
        return self._gather(index), crowd, slope_of  # last what leaves nothing else in the processor's cache

    def _gather(self, index: Tensor) -> Tensor:
        """Return the examples with these indices, in memory that is used again and again: fresh memory is slow."""
        if len(self._room) < len(index):
            self._room = self._inputs.new_empty(len(index), *self._inputs.shape[1:])
        room = self._room if len(self._room) == len(index) else self._room[: len(index)]
        found = torch.index_select(self._inputs, 0, index, out=room)
        return found.contiguous(memory_format=torch.channels_last) if self._channels_last else found

    def _factors(self, cohort: "_Cohort") -> dict[int, Tensor]:
        """Return, for layers in which clients weigh otherwise than at the output, by how much, for each example."""
        if cohort.importance_weights is None:
            return {}
        relative = np.where(cohort.steps > 0, cohort.importance_weights / cohort.importance_weights[:, -1:], 1.0)
        return {
            int(layer): torch.from_numpy(np.repeat(relative[:, layer], np.diff(cohort.bounds))).to(self._inputs.device)
            for layer in np.flatnonzero((relative != 1).any(axis=0))
        }

    def _layer_totals(
        self, weights: Mapping[str, Tensor], cohort: "_Cohort", moves: Mapping[str, Tensor], seen: Mapping[str, Tensor]
    ) -> list[PartialSum | None]:
        """Return the sums of each layer: the moves, with the decay of the weights, and all its buffers."""
        totals: list[PartialSum | None] = []
        scale, decays = cohort.scale(-self._optimisation.lr), self._decays(cohort)
        for place, (layer, reaching, weight) in enumerate(
            zip(self._layers, cohort.reaching, cohort.weight_reaching, strict=True)
        ):
            if not reaching:
                totals.append(None)
                continue
            deltas = {
                name: moves[name] if name in moves else torch.zeros_like(weights[name]) for name in layer.parameters
            }
            if decays:
                deltas = {
                    name: (scale * own).add(weights[name], alpha=_alpha(decays[place], own))
                    for name, own in deltas.items()
                }
            buffers = {name: _seen(seen.get(name), weights[name], weight) for name in layer.buffers}
            totals.append(PartialSum(reaching, weight, weight, deltas, buffers, 1.0 if decays else scale))
        return totals

    def _decays(self, cohort: "_Cohort") -> list[float]:
        """Return the multiple of the weights that is added to the sum of each layer for their decay, if they decay."""
        if not self._optimisation.weight_decay:
            return []
        importance_weights = cohort.steps if cohort.importance_weights is None else cohort.importance_weights
        rate = -self._optimisation.lr * self._optimisation.weight_decay
        return [rate * float(scale) for scale in cohort.weights @ importance_weights]


@dataclass(slots=True, eq=False)  # not frozen: that takes several times as long to make
class _Cohort:
    """The clients of a round that convey something, the deepest first; a row of each array belongs to one.

    `places` are their rows in the `tasks`, `batches` holds the indices of their examples, with `bounds` at which each
    client's begin among all of them, and the end of the last, and `reaching` is how many clients reach each layer.
    `own_weights` and `importance_weights` are those of the aggregation, None where each client weighs 1, or counts by its weight.
    `weight_of_all` includes clients that convey nothing.
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
        """How many steps each layer gets from each client."""
        return self.tasks.steps.take(self.places, axis=0)

    @property
    def weights(self) -> Floats:
        """What each client weighs."""
        return np.ones(len(self.places)) if self.own_weights is None else self.own_weights

    @property
    def weight_reaching(self) -> list[float]:
        """What the clients that reach each layer weigh together."""
        if self.own_weights is None:
            return [float(count) for count in self.reaching]
        weights: list[float] = (self.own_weights @ self.steps).tolist()
        return weights

    @property
    def examples(self) -> Ints:
        """The indices of the examples of all clients, one client after the other."""
        return self.batches.ravel() if self.tasks.full else self.batches[self.batches >= 0]

    @property
    def _alike(self) -> bool:
        """Whether all examples count alike."""
        return self.tasks.full and self.own_weights is None and self.importance_weights is None

    def scale(self, rate: float) -> float:
        """Return what the gradient of each example's loss counts in the sums, where all count alike; 1 elsewhere.

        It is `rate`, times what the client's Δ of the last layer counts, divided by the number of its examples.
        """
        return rate / self.batches.shape[1] if self._alike else 1.0

    def factors(self, rate: float) -> Tensor | None:
        """Return what the gradient of each example's loss counts in the sums; None where all count alike."""
        if self._alike:
            return None
        sizes = np.diff(self.bounds)
        scales = self.weights if self.importance_weights is None else self.weights * self.importance_weights[:, -1]
        return torch.from_numpy(np.repeat(scales * (rate / sizes), sizes))

    def parts(self, most: int) -> Iterator["_Cohort"]:
        """Cut the clients in parts of `most` examples at most, but at least one client."""
        bounds, first = self.bounds, 0
        if 0 < bounds[-1] <= most:
            yield self
            return
        while first < len(self.places):
            last = max(first + 1, bisect_right(bounds, bounds[first] + most) - 1)
            yield self._part(first, last)
            first = last

    def _part(self, first: int, last: int) -> "_Cohort":
        own = slice(first, last)
        reaching = [min(max(count - first, 0), last - first) for count in self.reaching]
        weights, importance_weights = (
            None if of is None else of[own] for of in (self.own_weights, self.importance_weights)
        )
        batches = self.batches[own]
        bounds = _bounds(batches, full=self.tasks.full)
        return _Cohort(
            self.tasks, self.places[own], batches, bounds, reaching, weights, importance_weights, self.weight_of_all
        )


def _sorted(tasks: Tasks, running: Aggregation, *, alike: bool = True) -> _Cohort:
    """Return the clients by depth, as an aggregation weighs them; `alike`, if it does, without a weight for each."""
    weights = None if alike and running.sums.weighs_equally else running.sums.weights(tasks.num_examples)
    return _in_order(tasks, weights, running.sums.importance_weights(tasks.steps))


def _in_order(tasks: Tasks, weights: Floats | None = None, importance_weights: Floats | None = None) -> _Cohort:
    """Return the clients by depth; raises `InvalidSetting` for steps that the fused engine cannot compute."""
    depths = np.add.reduce(tasks.steps, axis=1)  # of so few numbers, faster than the methods of the array
    reaching = _reaching(tasks.steps, depths)
    # Also by number, so that the order in which the clients are named does not matter.
    order = np.lexsort((tasks.clients, -depths))[: reaching[-1]]
    batches = tasks.batches[:, 0].take(order, axis=0)
    return _Cohort(
        tasks,
        order,
        batches,
        _bounds(batches, full=tasks.full),
        reaching,
        None if weights is None else weights[order],
        None if importance_weights is None else importance_weights[order],
        float(len(depths) if weights is None else weights.sum()),
    )


def _reaching(steps: Ints, depths: Ints) -> list[int]:
    """Return how many clients reach each layer; raises `InvalidSetting` unless they take one step from the output on.

    Zeros and ones with given sums of their rows can have but these sums of their columns in one way: all ones at the
    end of the rows.
    """
    deep = np.bincount(depths, minlength=steps.shape[1] + 1).tolist()
    reaching = [*accumulate(deep[:0:-1])]
    several = np.maximum.reduce(steps, axis=None, initial=0) > 1
    if several or np.add.reduce(steps).tolist() != reaching:
        raise InvalidSetting("the fused engine computes one step, of layers from the output on")
    return reaching


def _bounds(batches: Ints, *, full: bool) -> Sequence[int]:
    """Return at which places each client's examples begin among those of all, and the end of the last."""
    if full:
        return range(0, batches.size + 1, batches.shape[1])
    return [0, *(batches >= 0).sum(axis=1).cumsum().tolist()]


def _alpha(factor: float, of: Tensor) -> float:
    """Return a factor as torch takes it: one that a tensor's type cannot hold is infinite."""
    return factor if abs(factor) <= torch.finfo(of.dtype).max else math.copysign(math.inf, factor)


def _seen(sum_of_all: Tensor | None, before: Tensor, weight: float) -> Tensor:
    """Return what the contributors of a layer convey for a buffer: their sum, or what it was, if nothing changed it."""
    if sum_of_all is not None:
        return sum_of_all
    return before * weight if before.is_floating_point() else before


def _slope(labels: Tensor, each: Tensor | None, outputs: Tensor) -> Tensor:
    """Return the gradient of the sum of the examples' cross-entropies, each of them times its own number if it has one.

    It is softmax minus one for the true class. For few classes torch computes it several times faster along the first
    dimension.
    """
    grad_output = torch.softmax(outputs.t(), dim=0)
    grad_output.scatter_add_(0, labels.unsqueeze(0), _minus_ones(len(labels), grad_output.dtype, grad_output.device))
    return (grad_output if each is None else grad_output.mul_(each.to(grad_output))).t()


@lru_cache(maxsize=8)
def _minus_ones(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # what is kept must be of use outside of it as well
        return torch.full((1, count), -1.0, dtype=dtype, device=device)
