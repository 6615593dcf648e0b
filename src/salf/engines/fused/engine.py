"""The fused engine: one local step of all clients in one pass, in which each layer sees the examples that reach it."""

import math
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from salf.aggregation import Aggregation, PartialSum, Weights
from salf.engines.accelerator import ACCELERATOR_MEMORY
from salf.engines.fused.chain import find_chain
from salf.engines.fused.cohort import SortedCohort, sort_by_depth, sort_cohort
from salf.engines.fused.nested import NestedPass
from salf.engines.fused.rows import GradOutput, SortedClients
from salf.engines.fused.tracing import Traced, trace_rows
from salf.engines.plain import PlainEngine
from salf.engines.tasks import Tasks, Training, add_each, update_of
from salf.errors import InvalidSetting
from salf.update import Update

_SINGLE_BYTES = torch.float32.itemsize
MEMORY_BYTES = 256 * 2**20
# On a CPU a pass is faster when its results, without the examples, stay in the cache, unless calling costs more.
_CACHE_BYTES = 12 * 2**20
_WORTH_A_PASS = 256
# There, convolutions with this many channels are faster with the channels of a pixel next to each other.
_CHANNELS_LAST_FROM = 16


class FusedEngine:
    """Computes the sums of a round's updates in one forward and one backward pass over the examples of all clients.

    Clients take one step of plain SGD; in a single step from the global weights neither momentum nor a proximal term
    changes anything. If a sum is not finite, the plain engine `one_by_one` finds the updates to reject. A rule that
    needs individual updates gets them if the model is a chain: then only the gradients of the weights are computed
    client by client. The model is copied, never changed.

    Args:
        training: What the clients train, on what and how.
        memory_bytes: The most memory, on a CPU, for the results of all operations on the examples of one pass.

    Attributes:
        layers_apart: Whether each layer can weigh clients in its own way, as `InverseProbability` does.
        clients_apart: Whether it can compute each client's own update, as `Memory` needs it.

    Raises:
        InvalidSetting: The optimizer is not SGD.
        UnsuitableModel: Rows of the model depend on each other, other than by batch normalization.

    >>> from salf import Contributors, find_layers
    >>> from salf.layers import measure_costs
    >>> from salf.engines import OptimizerSettings
    >>> model, inputs, labels = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.rand(8, 2), torch.arange(8) % 2
    >>> layers, state = find_layers(model), model.state_dict()
    >>> costs = measure_costs(model, inputs, layers)
    >>> engine = FusedEngine(Training(model, layers, costs, inputs, labels, OptimizerSettings(), 2, local_steps=1))
    >>> batches = np.array([[[0, 1]], [[4, 5]]])  # two clients, one step, two examples
    >>> tasks = Tasks(np.arange(2), np.array([[1, 1], [0, 1]]), batches, np.array([4, 4]), seed=0, round=1)
    >>> running = Aggregation(state, layers, Contributors())
    >>> engine.train_cohort(state, tasks, running), running.finish().contributors
    (array([ True,  True]), (1, 2))
    """

    name = "fused"
    at_once = True

    def __init__(self, training: Training, memory_bytes: int = MEMORY_BYTES) -> None:
        kind = training.optimizer.optimizer
        if kind != "sgd":
            raise InvalidSetting(f"client.optimizer is {kind}, but the fused engine sums gradients; use sgd")
        inputs, layers = training.inputs, training.layers
        traced = trace_rows(training.model, inputs[[0, min(1, len(inputs) - 1), 0]])
        self._most_examples = _most_examples(traced, inputs, memory_bytes)
        self._pass = find_chain(traced, layers) or NestedPass(traced, layers)
        self.layers_apart, self.clients_apart = self._pass.layers_apart, self._pass.clients_apart
        self.one_by_one = PlainEngine(training)
        self._layers, self._labels, self._optimizer = layers, training.labels, training.optimizer
        self._inputs = self._pass.prepared(inputs)
        self._gathered = inputs.new_empty(0)
        # Whether sums of gradients can wait to be scaled: in half precision they would leave its range.
        self._wide = all(value.dtype.itemsize >= _SINGLE_BYTES for value in self._pass.parameters.values())
        owner = {name: index for index, layer in enumerate(layers) for name in layer.buffers}
        self._norms = [
            (norm, next((owner[name] for name in norm.names.values() if name in owner), None))
            for norm in self._pass.norms.values()
        ]
        channels = [module.out_channels for module in training.model.modules() if isinstance(module, nn.Conv2d)]
        large = min(channels, default=0) >= _CHANNELS_LAST_FROM
        self._channels_last = large and inputs.is_cpu and self._inputs.ndim == 4

    def train_cohort(self, weights: Weights, tasks: Tasks, running: Aggregation) -> npt.NDArray[np.bool_]:
        """Add the clients' updates; return which were accepted, shape (clients,).

        Sums are added unchecked: `Aggregation.finish` finds those that are not finite.
        """
        if running.sums.needs_individual_updates:
            updates = self._updates(weights, tasks)
            return add_each(running, tasks, lambda place: updates.pop(place, None))  # freed one by one
        cohort = sort_cohort(tasks, running.sums, alike=self._wide)
        running.sums.add_totals(len(tasks.clients), cohort.weight_of_all, self._totals(weights, cohort))
        return np.ones(len(tasks.clients), dtype=np.bool_)

    def _updates(self, weights: Weights, tasks: Tasks) -> dict[int, Update]:
        """Return the update of each client that finishes a layer, by its row in the tasks."""
        cohort, updates = sort_by_depth(tasks, np.ones(len(tasks.clients))), {}
        self._pass.load(weights)
        for part in cohort.parts(self._most_examples):
            found = self._pass.gradients_of_each(*self._arguments(part))
            for place, steps, moves in zip(part.places.tolist(), part.steps, found, strict=True):
                delta_of = partial(self._decayed, moves, weights)
                sizes = tasks.batch_size(place), int(tasks.num_examples[place])
                updates[place] = update_of(self._layers, steps, *sizes, delta_of, weights.__getitem__)
        return updates

    def _decayed(self, moves: Weights, weights: Weights, name: str) -> Tensor:
        """Return a parameter's change, given −η ∇F of a client."""
        decay = -self._optimizer.lr * self._optimizer.weight_decay
        return moves[name].add(weights[name], alpha=_alpha(decay, moves[name])) if decay else moves[name]

    def _totals(self, weights: Weights, cohort: SortedCohort) -> list[PartialSum | None]:
        """Return the sum of the updates of each layer, None for a layer without contributors."""
        self._pass.load(weights)
        moves: dict[str, Tensor] = {}
        buffers: dict[str, Tensor] = {}
        for part in cohort.parts(self._most_examples):
            for name, value in self._pass.gradients(*self._arguments(part)).items():  # −η Σ w_u ∇F_u
                moves[name] = moves[name].add_(value) if name in moves else value
            for norm, _ in self._norms:
                for name, value in norm.sums(torch.from_numpy(part.weights), weights).items():
                    whole = not value.is_floating_point()
                    buffers[name] = value if name not in buffers or whole else buffers[name] + value
        return self._layer_totals(weights, cohort, moves, buffers)

    def _arguments(self, cohort: SortedCohort) -> tuple[Tensor, SortedClients, GradOutput]:
        """Return the arguments of a pass over some clients: their examples, the clients and their gradient."""
        index = torch.from_numpy(cohort.examples).to(self._inputs.device)
        clients = SortedClients(cohort.bounds, cohort.reaching, self._layer_factors(cohort))
        for norm, layer in self._norms:
            norm.begin(0 if layer is None else clients.reaching[layer], self._inputs.device)
        factors = cohort.factors(-self._optimizer.lr)
        grad_output_of = partial(_cross_entropy_gradient, self._labels.index_select(0, index), factors)
        return self._gather(index), clients, grad_output_of  # examples last, so that they stay in the cache

    def _gather(self, index: Tensor) -> Tensor:
        """Return the examples with these indices, in memory that is used again: fresh memory is slow."""
        if len(self._gathered) < len(index):
            self._gathered = self._inputs.new_empty(len(index), *self._inputs.shape[1:])
        own = self._gathered if len(self._gathered) == len(index) else self._gathered[: len(index)]
        found = torch.index_select(self._inputs, 0, index, out=own)
        return found.contiguous(memory_format=torch.channels_last) if self._channels_last else found

    def _layer_factors(self, cohort: SortedCohort) -> dict[int, Tensor]:
        """Return each example's weight relative to the last layer, for layers where it is not 1."""
        if cohort.importance_weights is None:
            return {}
        relative = np.where(cohort.steps > 0, cohort.importance_weights / cohort.importance_weights[:, -1:], 1.0)
        return {
            int(layer): torch.from_numpy(np.repeat(relative[:, layer], np.diff(cohort.bounds))).to(self._inputs.device)
            for layer in np.flatnonzero((relative != 1).any(axis=0))
        }

    def _layer_totals(
        self, weights: Weights, cohort: SortedCohort, moves: Weights, changed: Weights
    ) -> list[PartialSum | None]:
        """Return the sum of each layer: the moves, with the decay of the weights, and its changed buffers."""
        totals: list[PartialSum | None] = []
        scale, decays = cohort.scale(-self._optimizer.lr), self._decays(cohort)
        reach = zip(self._layers, cohort.reaching, cohort.weight_reaching, strict=True)
        for place, (layer, reaching, weight) in enumerate(reach):
            if not reaching:
                totals.append(None)
                continue
            deltas = {}
            for name in layer.parameters:
                own = moves[name] if name in moves else torch.zeros_like(weights[name])
                if decays:
                    own = (scale * own).add(weights[name], alpha=_alpha(decays[place], own))
                deltas[name] = own
            buffers = {name: changed[name] for name in layer.buffers if name in changed}
            totals.append(PartialSum(reaching, weight, weight, deltas, buffers, 1.0 if decays else scale))
        return totals

    def _decays(self, cohort: SortedCohort) -> list[float]:
        """Return the multiple of the weights to add to the sum of each layer; empty if weights do not decay."""
        if not self._optimizer.weight_decay:
            return []
        importance = cohort.steps if cohort.importance_weights is None else cohort.importance_weights
        rate = -self._optimizer.lr * self._optimizer.weight_decay
        return [rate * float(scale) for scale in cohort.weights @ importance]


def _most_examples(traced: Traced, inputs: Tensor, memory_bytes: int) -> int:
    """Return how many examples one pass may take."""
    each = max(1, traced.bytes_per_example)
    computed = max(1, each - inputs[0].nbytes)
    cached = max(_CACHE_BYTES // computed, _WORTH_A_PASS)
    return max(1, min(memory_bytes // each, cached) if inputs.is_cpu else ACCELERATOR_MEMORY * memory_bytes // each)


def _alpha(factor: float, of: Tensor) -> float:
    """Return a factor as torch takes it: infinite if the tensor's type cannot hold it."""
    return factor if abs(factor) <= torch.finfo(of.dtype).max else math.copysign(math.inf, factor)


def _cross_entropy_gradient(labels: Tensor, factors: Tensor | None, outputs: Tensor) -> Tensor:
    """Return the gradient of the sum of the examples' cross-entropies with respect to the outputs.

    It is softmax minus one for the true class. For few classes torch computes it several times faster along the first
    dimension.

    Args:
        labels: The true classes, shape (examples,).
        factors: The factor of each example's cross-entropy; None if all are 1.
        outputs: The model's outputs, shape (examples, classes).
    """
    gradient = torch.softmax(outputs.t(), dim=0)
    gradient.scatter_add_(0, labels.unsqueeze(0), _minus_ones(len(labels), gradient.dtype, gradient.device))
    return (gradient if factors is None else gradient.mul_(factors.to(gradient))).t()


@lru_cache(maxsize=8)
def _minus_ones(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # the cached tensor is also used outside inference mode
        return torch.full((1, count), -1.0, dtype=dtype, device=device)
