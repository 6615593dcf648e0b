"""The engine for one local step: all clients in one pass, whose layer l backpropagates what belongs to U_l only."""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from salf.aggregation import Aggregation, Floats, LayerTotal
from salf.engines.chain import find_chain
from salf.engines.nested import NestedPass
from salf.engines.plain import PlainEngine
from salf.engines.rows import Crowd
from salf.engines.task import Optimisation, Tasks, Whole
from salf.engines.tracing import trace_rows
from salf.errors import InvalidSetting
from salf.layers import Layer, Layers
from salf.updates import all_finite

# How large the results of all operations on the examples of one pass may be together.
MEMORY_BYTES = 256 * 2**20
# Passes whose results stay in the processor's cache are faster, unless they are so small that calling costs more.
_CACHE_BYTES = 24 * 2**20
_WORTH_A_PASS = 512
# Convolutions of at least so many channels are faster with the channels of a pixel side by side.
_CHANNELS_LAST_FROM = 16


class FusedEngine:
    """Computes the sums of a round's updates in one forward and one backward pass over the examples of all clients.

    Clients must take one step of plain SGD; in a single step momentum changes nothing. Where a sum is not finite the
    plain engine repeats the round, to find out whose update is to blame. The model is copied, never changed; models
    whose rows depend on each other other than by batch normalisation, which is done client by client, raise
    `UnsuitableModel`.
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
        self._most = max(1, min(memory_bytes // each, max(_CACHE_BYTES // each, _WORTH_A_PASS)))
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
        self._channels_last = inputs.ndim == 4 and min(channels, default=0) >= _CHANNELS_LAST_FROM

    @property
    def layers_apart(self) -> bool:
        """Whether each layer can weigh clients in its own way, as `InverseProbability` does."""
        return self._pass.layers_apart

    def contribute(self, weights: Mapping[str, Tensor], tasks: Tasks, running: Aggregation) -> npt.NDArray[np.bool_]:
        """Add what the clients convey; return whose updates were accepted, shape (clients,)."""
        totals = self._totals(weights, tasks, running)
        if totals is None:
            return self._plain.contribute(weights, tasks, running)
        running.add_totals(tasks.num_examples, tasks.steps, totals)
        return np.ones(len(tasks.clients), dtype=np.bool_)

    def _totals(
        self, weights: Mapping[str, Tensor], tasks: Tasks, running: Aggregation
    ) -> list[LayerTotal | None] | None:
        """Return the sums of what the clients convey, None for layers without contributors; None if one overflows."""
        steps = tasks.steps
        if (steps[:, 1:] < steps[:, :-1]).any() or steps.max(initial=0) > 1:
            raise InvalidSetting("the fused engine computes one step, of layers from the output on")
        # By depth; and by number, so that the order in which the clients are named does not matter.
        order = np.lexsort((tasks.clients, -steps.sum(axis=1)))
        order = order[: int(steps[:, -1].sum())]
        scales, clients = running.scales(tasks.num_examples, steps), running.weights(tasks.num_examples)
        self._pass.load(weights)
        moves: list[Tensor] = []
        buffers: dict[str, Tensor] = {}
        for own in self._chunks(order, tasks.batches):
            some, seen = self._backward(weights, steps[own], tasks.batches[own, 0], scales[own], clients[own])
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
        sums, held = scales[order].sum(axis=0), np.where(steps > 0, clients[:, None], 0.0).sum(axis=0)
        return [
            self._total(weights, layer, named, buffers, float(scale), float(weight)) if reached else None
            for layer, scale, weight, reached in zip(
                self._layers, sums, held, np.atleast_1d(steps.any(axis=0)), strict=True
            )
        ]

    def _chunks(self, order: Whole, batches: Whole) -> Iterator[Whole]:
        """Cut the clients in parts of as many examples as memory allows, but at least one client."""
        ends = (batches[order, 0] >= 0).sum(axis=1).cumsum()
        first = 0
        while first < len(order):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + self._most, side="right")))
            yield order[first:last]
            first = last

    def _backward(
        self, weights: Mapping[str, Tensor], steps: Whole, batches: Whole, scales: Floats, clients: Floats
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return −η Σ s_u ∇F_u for each parameter, and Σ a_u b_u for buffers that changed, over one part's clients."""
        own = batches >= 0
        sizes = own.sum(axis=1)
        index = torch.from_numpy(batches[own]).to(self._inputs.device)
        inputs, labels = self._gather(index), self._labels.index_select(0, index)
        reaching = steps.sum(axis=0)
        crowd = Crowd([0, *sizes.cumsum().tolist()], reaching.tolist(), self._factors(scales, sizes))
        for norm, layer in self._norms:
            norm.begin(0 if layer is None else crowd.reaching[layer], self._inputs.device)
        each = np.repeat(-self._optimisation.lr * scales[:, -1] / sizes, sizes)
        gradients = self._pass.gradients(inputs, crowd, partial(_slope, labels, torch.from_numpy(each)))
        seen: dict[str, Tensor] = {}
        for norm, _ in self._norms:
            seen |= norm.sums(torch.from_numpy(clients), weights)
        return gradients, seen

    def _gather(self, index: Tensor) -> Tensor:
        """Return the examples with these indices, in memory that is used again and again: fresh memory is slow."""
        if len(self._room) < len(index):
            self._room = self._inputs.new_empty(len(index), *self._inputs.shape[1:])
        found = torch.index_select(self._inputs, 0, index, out=self._room[: len(index)])
        return found.contiguous(memory_format=torch.channels_last) if self._channels_last else found

    def _factors(self, scales: Floats, sizes: Whole) -> dict[int, Tensor]:
        """Return, for layers in which clients weigh otherwise than at the output, by how much, for each example."""
        at_output = scales[:, -1:]
        if ((scales == at_output) | (scales == 0)).all():
            return {}
        relative = np.where(scales > 0, scales / at_output, 1.0)
        return {
            int(layer): torch.from_numpy(np.repeat(relative[:, layer], sizes)).to(self._inputs.device)
            for layer in np.flatnonzero((relative != 1).any(axis=0))
        }

    def _total(
        self,
        weights: Mapping[str, Tensor],
        layer: Layer,
        moves: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        scale: float,
        weight: float,
    ) -> LayerTotal:
        decay = -self._optimisation.lr * self._optimisation.weight_decay * scale
        deltas = {
            name: moves[name].add(weights[name], alpha=decay) if decay else moves[name] for name in layer.parameters
        }
        kept = {
            name: weights[name] * weight if weights[name].is_floating_point() else weights[name]
            for name in layer.buffers
        }
        return LayerTotal(deltas, {name: buffers.get(name, value) for name, value in kept.items()})


def _slope(labels: Tensor, each: Tensor, outputs: Tensor) -> Tensor:
    """Return the gradient of the sum of the examples' cross-entropies, each of them times its own number.

    It is softmax minus one for the true class. For few classes torch computes it several times faster along the first
    dimension.
    """
    slope = torch.softmax(outputs.t(), dim=0).t()
    slope.scatter_add_(1, labels[:, None], slope.new_full((len(labels), 1), -1.0))
    return slope.mul_(each.to(outputs)[:, None])
