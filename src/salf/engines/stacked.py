"""The stacked engine: several local steps of many clients together, on stacked weights."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from salf.aggregation import Aggregation, Weights
from salf.engines.accelerator import ACCELERATOR_MEMORY, fork_rng
from salf.engines.tasks import Tasks, Training, add_each, update_of
from salf.update import Update
from salf.values import Ints

MEMORY_BYTES = 512 * 2**20
_COPIES_OF_WEIGHTS = 5  # weights, gradients, optimizer state and temporary values


class StackedEngine:
    """Trains clients together, each from the global weights on its own examples, with `torch.func.vmap`.

    The optimizer takes a step for all of them; layers that a client does not reach get their old weights back. The
    model is copied, never changed. One that draws random numbers or cannot be vectorized fails at its first use.

    Args:
        training: What the clients train, on what and how.
        memory_bytes: The most memory, on a CPU, for the weights, gradients, optimizer state and activations of the
            clients that train together; larger cohorts are split.

    >>> from salf import Contributors, find_layers
    >>> from salf.layers import measure_costs
    >>> from salf.engines import OptimizerSettings
    >>> model, inputs, labels = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.rand(8, 2), torch.arange(8) % 2
    >>> layers, state = find_layers(model), model.state_dict()
    >>> costs = measure_costs(model, inputs, layers)
    >>> engine = StackedEngine(Training(model, layers, costs, inputs, labels, OptimizerSettings(), 2, local_steps=2))
    >>> batches = np.array([[[0, 1], [2, 3]], [[4, 5], [6, 7]]])  # two clients, two steps, two examples
    >>> tasks = Tasks(np.arange(2), np.array([[2, 2], [1, 2]]), batches, np.array([4, 4]), seed=0, round=1)
    >>> engine.train_cohort(state, tasks, Aggregation(state, layers, Contributors()))
    array([ True,  True])
    """

    name = "stacked"
    at_once = True
    one_by_one = None

    def __init__(self, training: Training, memory_bytes: int = MEMORY_BYTES) -> None:
        model, inputs = training.model, training.inputs
        self._model = copy.deepcopy(model).train().requires_grad_(requires_grad=False)
        self._training = replace(training, model=self._model)
        self._trained = [name for layer in training.layers for name in layer.parameters]
        self._buffers = {name: value.detach().clone() for name, value in self._model.named_buffers()}
        self._memory_bytes = memory_bytes if inputs.is_cpu else ACCELERATOR_MEMORY * memory_bytes
        self._client_bytes = _COPIES_OF_WEIGHTS * sum(value.nbytes for value in self._model.parameters())
        self._example_bytes = _kept_bytes(model, inputs[:2].clone()) // len(inputs[:2])

    def train_cohort(self, weights: Weights, tasks: Tasks, running: Aggregation) -> npt.NDArray[np.bool_]:
        """Add the clients' updates; return which were accepted, shape (clients,)."""
        updates: dict[int, Update] = {}
        busy = np.flatnonzero(tasks.steps.any(axis=1))
        self._load(weights)
        for own in self._chunks(busy, tasks):
            updates |= self._train(weights, tasks, own)
        return add_each(running, tasks, lambda place: updates.pop(place, None))  # freed one by one

    def _load(self, weights: Weights) -> None:
        """Use the global weights for parameters that no client trains."""
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.data = weights[name]

    def _chunks(self, clients: Ints, tasks: Tasks) -> Iterator[Ints]:
        """Split the clients in chunks that fit memory, with equal batch sizes and similar numbers of steps."""
        sizes = (tasks.batches[:, 0] >= 0).sum(axis=1)
        ordered = clients[np.lexsort((tasks.clients[clients], -tasks.steps[clients].sum(axis=1), sizes[clients]))]
        for size in np.unique(sizes[ordered]):
            alike = ordered[sizes[ordered] == size]
            most = max(1, self._memory_bytes // (self._client_bytes + int(size) * self._example_bytes))
            for first in range(0, len(alike), most):
                yield alike[first : first + most]

    def _train(self, weights: Weights, tasks: Tasks, own: Ints) -> dict[int, Update]:
        """Train some clients together; return their updates by position."""
        count = len(own)
        batches = tasks.batches[own]
        batches = batches[:, :, : int((batches[0, 0] >= 0).sum())]
        steps = tasks.steps[own]
        parameters = {name: nn.Parameter(_stack(weights[name], count)) for name in self._trained}
        buffers = {name: _stack(weights.get(name, initial), count) for name, initial in self._buffers.items()}
        optimizer = self._training.optimizer.build(list(parameters.values()))
        for step in range(int(steps.max())):
            index = torch.from_numpy(batches[:, step]).to(self._training.inputs.device)
            kept = self._keep(parameters, buffers, steps <= step)
            outputs = self._forward(parameters, buffers, self._training.inputs[index])
            labels = self._training.labels[index]
            loss = functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="sum") / index.shape[1]
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            if tasks.proximal:
                _add_proximal(parameters, weights, tasks.proximal)
            optimizer.step()
            with torch.no_grad():
                for tensor, old, stays in kept:
                    tensor.copy_(torch.where(stays.view(-1, *[1] * (tensor.ndim - 1)), old, tensor))
        with torch.no_grad():
            deltas = {name: value.detach() - weights[name] for name, value in parameters.items()}
        return {
            position: self._update(place, tasks, position, deltas, buffers)
            for place, position in enumerate(own.tolist())
        }

    def _keep(
        self, parameters: Weights, buffers: Weights, stays: npt.NDArray[np.bool_]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return each tensor that some client does not reach in this step, its value, and which clients keep it."""
        marked = torch.from_numpy(stays).to(self._training.inputs.device)
        return [
            (tensor, tensor.detach().clone(), marked[:, place])
            for place, layer in enumerate(self._training.layers)
            if stays[:, place].any()
            for tensor in (*(parameters[name] for name in layer.parameters), *(buffers[name] for name in layer.buffers))
        ]

    def _forward(self, parameters: Weights, buffers: Weights, inputs: Tensor) -> Tensor:
        """Return the outputs of each client's model for its own inputs, shape (clients, batch, classes)."""

        def one(own: dict[str, Tensor], state: dict[str, Tensor], x: Tensor) -> Tensor:
            outputs: Tensor = functional_call(self._model, {**own, **state}, (x,))
            return outputs

        # Fused attention kernels cannot be vectorized. For other such operations, such as a GRU's cell, vmap calls one
        # client after another, with a warning that asks users to write to the developers of torch.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            outputs: Tensor = torch.func.vmap(one)(dict(parameters), dict(buffers), inputs)
        return outputs

    def _update(self, place: int, tasks: Tasks, position: int, deltas: Weights, buffers: Weights) -> Update:
        """Return the update of the client at `place` in the stack and `position` in the tasks."""
        layers, sizes = self._training.layers, (tasks.batch_size(position), int(tasks.num_examples[position]))
        delta_of, buffer_of = (lambda name: deltas[name][place]), (lambda name: buffers[name][place])
        return update_of(layers, tasks.steps[position], *sizes, delta_of, buffer_of)


def _add_proximal(parameters: Mapping[str, nn.Parameter], weights: Weights, proximal: float) -> None:
    """Add the gradient of μ/2 ‖w − w_t‖² to each client's gradient."""
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            parameter.grad += proximal * (parameter.detach() - weights[name])


def _stack(tensor: Tensor, count: int) -> Tensor:
    """Return `count` copies of a tensor, stacked along a new first dimension."""
    return tensor.detach().expand(count, *tensor.shape).clone()


def _kept_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Return the bytes of activations that the backward pass of `model` keeps, without the weights."""
    twin = copy.deepcopy(model).train()
    weights = {parameter.data_ptr() for parameter in twin.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with fork_rng(inputs.device), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        twin(inputs)
    return sum(kept.values())
