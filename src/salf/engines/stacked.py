"""The engine for several local steps: the weights of many clients side by side, trained together."""

import copy
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from salf.aggregation import Aggregation
from salf.engines.accelerator import ROOMIER, fork_rng
from salf.engines.tasks import OptimizerSettings, Tasks, add_each
from salf.layers import Layer, Layers
from salf.update import Update
from salf.values import Ints

# How large the weights, their gradients and optimizer state, and what backpropagation keeps, may be together.
MEMORY_BYTES = 512 * 2**20
_COPIES_OF_WEIGHTS = 5


class StackedEngine:
    """Trains clients together, each from the global weights on examples of its own, with `torch.func.vmap`.

    The optimizer's step is taken for all of them; where a client has not reached a layer, its old weights come back.
    The model is copied, never changed. One that draws random numbers or cannot be vectorised fails when it is first
    used.
    """

    name = "stacked"
    at_once = True
    one_by_one = None

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        inputs: Tensor,
        labels: Tensor,
        optimisation: OptimizerSettings,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._model = copy.deepcopy(model).train().requires_grad_(requires_grad=False)
        self._layers, self._inputs, self._labels, self._optimisation = layers, inputs, labels, optimisation
        self._trained = [name for layer in layers for name in layer.parameters]
        self._buffers = {name: value.detach().clone() for name, value in self._model.named_buffers()}
        self._memory = memory_bytes if inputs.is_cpu else ROOMIER * memory_bytes
        self._client_bytes = _COPIES_OF_WEIGHTS * sum(value.nbytes for value in self._model.parameters())
        self._example_bytes = _kept_bytes(model, inputs[:2].clone()) // len(inputs[:2])

    def train_cohort(self, weights: Mapping[str, Tensor], tasks: Tasks, running: Aggregation) -> npt.NDArray[np.bool_]:
        """Add what the clients convey; return whose updates were accepted, shape (clients,)."""
        updates: dict[int, Update] = {}
        busy = np.flatnonzero(tasks.steps.any(axis=1))
        self._load(weights)
        for own in self._chunks(busy, tasks):
            updates |= self._train(weights, tasks, own)
        return add_each(running, tasks, updates)

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        """Use the global weights where clients train none of their own."""
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.data = weights[name]

    def _chunks(self, clients: Ints, tasks: Tasks) -> Iterator[Ints]:
        """Cut the clients in parts that fit memory, of equal batches and about as many steps."""
        sizes = (tasks.batches[:, 0] >= 0).sum(axis=1)
        ordered = clients[np.lexsort((tasks.clients[clients], -tasks.steps[clients].sum(axis=1), sizes[clients]))]
        for size in np.unique(sizes[ordered]):
            alike = ordered[sizes[ordered] == size]
            most = max(1, self._memory // (self._client_bytes + int(size) * self._example_bytes))
            for first in range(0, len(alike), most):
                yield alike[first : first + most]

    def _train(self, weights: Mapping[str, Tensor], tasks: Tasks, own: Ints) -> dict[int, Update]:
        """Train some clients together; return their updates by position."""
        count = len(own)
        batches = tasks.batches[own]
        batches = batches[:, :, : int((batches[0, 0] >= 0).sum())]
        steps = tasks.steps[own]
        parameters = {name: nn.Parameter(_stack(weights[name], count)) for name in self._trained}
        buffers = {name: _stack(weights.get(name, initial), count) for name, initial in self._buffers.items()}
        optimizer = self._optimisation.build(list(parameters.values()))
        for step in range(int(steps.max())):
            index = torch.from_numpy(batches[:, step]).to(self._inputs.device)
            kept = self._keep(parameters, buffers, steps <= step)
            outputs = self._forward(parameters, buffers, self._inputs[index])
            labels = self._labels[index]
            loss = functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="sum") / index.shape[1]
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if tasks.proximal:
                _add_proximal(parameters, weights, tasks.proximal)
            optimizer.step()
            with torch.no_grad():
                for tensor, old, stays in kept:
                    tensor.copy_(torch.where(stays.view(-1, *[1] * (tensor.ndim - 1)), old, tensor))
        with torch.no_grad():
            deltas = {name: value.detach() - weights[name] for name, value in parameters.items()}
        return {
            position: self._update(place, tasks.steps[position], int(tasks.num_examples[position]), deltas, buffers)
            for place, position in enumerate(own.tolist())
        }

    def _keep(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], stays: npt.NDArray[np.bool_]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Copy what some client does not reach in this step: the tensor, its values, and whose values stay."""
        marked = torch.from_numpy(stays).to(self._inputs.device)
        return [
            (tensor, tensor.detach().clone(), marked[:, place])
            for place, layer in enumerate(self._layers)
            if stays[:, place].any()
            for tensor in (
                *(parameters[name] for name in layer.parameters),
                *(buffers[name] for name in layer.buffers),
            )
        ]

    def _forward(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the outputs of each client's model for its own inputs, shape (clients, batch, classes)."""

        def one(own: dict[str, Tensor], state: dict[str, Tensor], x: Tensor) -> Tensor:
            outputs: Tensor = functional_call(self._model, {**own, **state}, (x,))
            return outputs

        # The fused kernels of attention cannot be vectorised. Others that cannot, such as a GRU's cell, vmap calls for
        # one client after another, with a warning that asks users to write to the developers of torch.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            outputs: Tensor = torch.func.vmap(one)(dict(parameters), dict(buffers), inputs)
        return outputs

    def _update(
        self,
        place: int,
        steps: Ints,
        num_examples: int,
        deltas: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
    ) -> Update:
        conveyed: list[Layer] = [layer for layer, count in zip(self._layers, steps, strict=True) if count]
        return Update(
            {name: deltas[name][place] for layer in conveyed for name in layer.parameters},
            {layer.name: int(count) for layer, count in zip(self._layers, steps, strict=True) if count},
            num_examples,
            {name: buffers[name][place] for layer in conveyed for name in layer.buffers},
        )


def _add_proximal(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor], proximal: float) -> None:
    """Add the gradient of μ/2 ‖w − w_t‖² to each client's."""
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            parameter.grad += proximal * (parameter.detach() - weights[name])


def _stack(tensor: Tensor, count: int) -> Tensor:
    """Return `count` copies of a tensor, one after the other."""
    return tensor.detach().expand(count, *tensor.shape).clone()


def _kept_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Return how much the backward pass of `model` keeps of the forward pass, weights apart."""
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
