"""The engine for one local step: all clients in one pass, whose layer l backpropagates what belongs to U_l only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from salf.accelerators import ROOMIER
from salf.aggregation import Aggregation, Floats
from salf.engines.chain import ChainPass, find_chain
from salf.engines.nested import NestedPass
from salf.engines.plain import PlainEngine
from salf.engines.rows import Crowd, Slope
from salf.engines.task import Optimisation, Tasks, Whole, add_each
from salf.engines.tracing import trace_rows
from salf.errors import InvalidSetting
from salf.layers import Layer, Layers
from salf.sums import LayerTotal
from salf.updates import Update, all_finite

# How large the results of all operations on the examples of one pass may be together.
MEMORY_BYTES = 256 * 2**20
# On a CPU passes whose results, the examples apart, stay in its cache are faster, unless calling costs more.
_CACHE_BYTES = 12 * 2**20
_WORTH_A_PASS = 512
# Convolutions of at least so many channels are faster there with the channels of a pixel side by side.
_CHANNELS_LAST_FROM = 16


class FusedEngine:
    """Computes the sums of a round's updates in one forward and one backward pass over the examples of all clients.

    Clients must take one step of plain SGD; in a single step from the global weights neither momentum nor a proximal
    term changes anything. Where a sum is not finite the plain engine repeats the round, to find out whose update is to
    blame. A rule that needs each client's own update, not their sum, gets it where the model is a chain: then only the
    gradients of the weights are computed client by client. The model is copied, never changed; models whose rows depend
    on each other other than by batch normalisation, which is done client by client, raise `UnsuitableModel`.
    """

    name = "fused"
    at_once = True

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        inputs: Tensor,
        labels: Tensor,
        optimisation: Optimisation,
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
        self._plain = PlainEngine(model, layers, inputs, labels, optimisation)
        self._layers, self._inputs, self._labels, self._optimisation = layers, inputs, labels, optimisation
        self._room = inputs.new_empty(0)
        owner = {name: index for index, layer in enumerate(layers) for name in layer.buffers}
        self._norms = [
            (norm, next((owner[name] for name in norm.names.values() if name in owner), None))
            for norm in self._pass.norms.values()
        ]
        channels = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
        self._channels_last = inputs.is_cpu and inputs.ndim == 4 and min(channels, default=0) >= _CHANNELS_LAST_FROM

    @property
    def layers_apart(self) -> bool:
        """Whether each layer can weigh clients in its own way, as `InverseProbability` does."""
        return self._pass.layers_apart

    @property
    def clients_apart(self) -> bool:
        """Whether each client's own update can be told, as `Memory` needs it."""
        return self._pass.clients_apart

    def contribute(self, weights: Mapping[str, Tensor], tasks: Tasks, running: Aggregation) -> npt.NDArray[np.bool_]:
        """Add what the clients convey; return whose updates were accepted, shape (clients,)."""
        if running.of_each:
            return add_each(running, tasks, self._updates(weights, tasks))
        totals = self._totals(weights, cohort := _sorted(tasks, running))
        if totals is None:
            return self._plain.contribute(weights, tasks, running)
        running.add_totals(len(tasks.clients), cohort.weight_of_all, totals)
        return np.ones(len(tasks.clients), dtype=np.bool_)

    def _updates(self, weights: Mapping[str, Tensor], tasks: Tasks) -> dict[int, Update]:
        """Return the update of each client that conveys something, by its place in the tasks."""
        if not isinstance(self._pass, ChainPass):  # which alone tells clients apart
            raise InvalidSetting("the fused engine computes sums, but each client's own update is asked for")
        cohort, updates = _in_order(tasks, np.ones(len(tasks.clients)), None), {}
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
        deltas = {name: moves[name].add(weights[name], alpha=decay) if decay else moves[name] for name in names}
        buffers = {name: weights[name] for layer in layers for name in layer.buffers}
        return Update(deltas, {layer.name: 1 for layer in layers}, num_examples, buffers)

    def _totals(self, weights: Mapping[str, Tensor], cohort: "_Cohort") -> list[LayerTotal | None] | None:
        """Return the sums of what the clients convey, None for layers without contributors; None if one overflows."""
        self._pass.load(weights)
        moves: list[Tensor] = []
        buffers: dict[str, Tensor] = {}
        for part in cohort.parts(self._most):
            some, seen = self._backward(weights, part)
            if moves:
                torch._foreach_add_(moves, some)
            else:
                moves = some
            for name, value in seen.items():
                whole = not value.is_floating_point()
                buffers[name] = value if name not in buffers or whole else buffers[name] + value
        if not all_finite([*moves, *buffers.values()]):
            return None
        named = dict(zip(self._pass.parameters, moves, strict=bool(moves)))
        return self._layer_totals(weights, cohort, named, buffers)

    def _backward(self, weights: Mapping[str, Tensor], cohort: "_Cohort") -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return −η Σ s_u ∇F_u for each parameter, and Σ a_u b_u for buffers that changed."""
        gradients = self._pass.gradients(*self._asked(cohort))
        seen: dict[str, Tensor] = {}
        for norm, _ in self._norms:
            seen |= norm.sums(torch.from_numpy(cohort.weights), weights)
        return gradients, seen

    def _asked(self, cohort: "_Cohort") -> tuple[Tensor, Crowd, Slope]:
        """Return what a pass over some clients takes: their examples, who they are, and what they minimise."""
        index = torch.from_numpy(cohort.batches[cohort.batches >= 0]).to(self._inputs.device)
        inputs, labels = self._gather(index), self._labels.index_select(0, index)
        crowd = Crowd([0, *cohort.sizes.cumsum().tolist()], cohort.reaching, self._factors(cohort))
        for norm, layer in self._norms:
            norm.begin(0 if layer is None else crowd.reaching[layer], self._inputs.device)
        each = np.repeat(cohort.scales * (-self._optimisation.lr / cohort.sizes), cohort.sizes)
        return inputs, crowd, partial(_slope, labels, torch.from_numpy(each))

    def _gather(self, index: Tensor) -> Tensor:
        """Return the examples with these indices, in memory that is used again and again: fresh memory is slow."""
        if len(self._room) < len(index):
            self._room = self._inputs.new_empty(len(index), *self._inputs.shape[1:])
        found = torch.index_select(self._inputs, 0, index, out=self._room[: len(index)])
        return found.contiguous(memory_format=torch.channels_last) if self._channels_last else found

    def _factors(self, cohort: "_Cohort") -> dict[int, Tensor]:
        """Return, for layers in which clients weigh otherwise than at the output, by how much, for each example."""
        if cohort.boosts is None:
            return {}
        relative = np.where(cohort.steps > 0, cohort.boosts / cohort.boosts[:, -1:], 1.0)
        return {
            int(layer): torch.from_numpy(np.repeat(relative[:, layer], cohort.sizes)).to(self._inputs.device)
            for layer in np.flatnonzero((relative != 1).any(axis=0))
        }

    def _layer_totals(
        self, weights: Mapping[str, Tensor], cohort: "_Cohort", moves: Mapping[str, Tensor], seen: Mapping[str, Tensor]
    ) -> list[LayerTotal | None]:
        """Return the sums of each layer: the moves, with the decay of the weights, and all its buffers."""
        totals: list[LayerTotal | None] = []
        held = (cohort.weights @ cohort.steps).tolist()
        for layer, reaching, weight, decay in zip(
            self._layers, cohort.reaching, held, self._decays(cohort), strict=True
        ):
            if not reaching:
                totals.append(None)
                continue
            deltas = {name: moves[name] for name in layer.parameters}
            if decay:
                deltas = {name: value.add(weights[name], alpha=decay) for name, value in deltas.items()}
            buffers = {name: _seen(seen.get(name), weights[name], weight) for name in layer.buffers}
            totals.append(LayerTotal(reaching, weight, weight, deltas, buffers))
        return totals

    def _decays(self, cohort: "_Cohort") -> list[float]:
        """Return the multiple of the weights that is added to the sum of each layer, for their decay."""
        if not self._optimisation.weight_decay:
            return [0.0] * len(self._layers)
        boosts = cohort.steps if cohort.boosts is None else cohort.boosts
        rate = -self._optimisation.lr * self._optimisation.weight_decay
        return [rate * float(scale) for scale in cohort.weights @ boosts]


@dataclass(frozen=True, eq=False)
class _Cohort:
    """The clients of a round that convey something, the deepest first; a row of each array belongs to one.

    `places` are their rows in the `Tasks`, `batches` and `steps` as there, `sizes` how many examples each has;
    `weights` and `boosts` are those of the aggregation. `weight_of_all` includes those that convey nothing.
    """

    places: Whole
    batches: Whole
    sizes: Whole
    steps: Whole
    weights: Floats
    boosts: Floats | None
    weight_of_all: float

    @cached_property
    def reaching(self) -> list[int]:
        """How many clients reach each layer."""
        counts: list[int] = self.steps.sum(axis=0).tolist()
        return counts

    @property
    def scales(self) -> Floats:
        """By how much each client's Δ of the last layer is multiplied in the sum."""
        return self.weights if self.boosts is None else self.weights * self.boosts[:, -1]

    def parts(self, most: int) -> Iterator["_Cohort"]:
        """Cut the clients in parts of `most` examples at most, but at least one client."""
        ends = self.sizes.cumsum()
        if len(ends) and ends[-1] <= most:
            yield self
            return
        first = 0
        while first < len(ends):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
            yield self._part(slice(first, last))
            first = last

    def _part(self, own: slice) -> "_Cohort":
        boosts = None if self.boosts is None else self.boosts[own]
        return _Cohort(
            self.places[own],
            self.batches[own],
            self.sizes[own],
            self.steps[own],
            self.weights[own],
            boosts,
            self.weight_of_all,
        )


def _sorted(tasks: Tasks, running: Aggregation) -> _Cohort:
    """Return the clients by depth, as an aggregation weighs them."""
    return _in_order(tasks, running.weights(tasks.num_examples), running.boosts(tasks.steps))


def _in_order(tasks: Tasks, weights: Floats, boosts: Floats | None) -> _Cohort:
    """Return the clients by depth; raises `InvalidSetting` for steps that the fused engine cannot compute."""
    steps = tasks.steps
    depths = steps.sum(axis=1)
    if (steps != (np.arange(steps.shape[1], 0, -1) <= depths[:, None])).any():
        raise InvalidSetting("the fused engine computes one step, of layers from the output on")
    # Also by number, so that the order in which the clients are named does not matter.
    order = np.lexsort((tasks.clients, -depths))[: np.count_nonzero(depths)]
    batches = tasks.batches[order, 0]
    return _Cohort(
        order,
        batches,
        (batches >= 0).sum(axis=1),
        steps[order],
        weights[order],
        None if boosts is None else boosts[order],
        float(weights.sum()),
    )


def _seen(sum_of_all: Tensor | None, before: Tensor, weight: float) -> Tensor:
    """Return what the contributors of a layer convey for a buffer: their sum, or what it was, if nothing changed it."""
    if sum_of_all is not None:
        return sum_of_all
    return before * weight if before.is_floating_point() else before


def _slope(labels: Tensor, each: Tensor, outputs: Tensor) -> Tensor:
    """Return the gradient of the sum of the examples' cross-entropies, each of them times its own number.

    It is softmax minus one for the true class. For few classes torch computes it several times faster along the first
    dimension.
    """
    factors = each.to(outputs)
    slope = torch.softmax(outputs.t(), dim=0).mul_(factors)
    return slope.scatter_add_(0, labels[None], -factors[None]).t()
