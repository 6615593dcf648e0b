"""The naive engine: one client after another, on one copy of the model. The others are measured against it."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from salf.aggregation import Aggregation
from salf.client import truncated_gradients
from salf.engines.accelerator import fork_rng
from salf.engines.tasks import ClientTask, OptimizerSettings, Tasks
from salf.errors import InvalidUpdate
from salf.layers import Layer, Layers
from salf.update import Update

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy_of(client: int) -> Loss:  # noqa: ARG001 - everyone's
    """Return the loss that every client minimises unless it is given one of its own."""
    return nn.functional.cross_entropy


class PlainEngine:
    """Trains a cohort's clients in turn, each from the global weights, backpropagating only as deep as it got.

    `loss_of` gives, by its number, the loss that a client minimises. The model that it is given is copied, never
    changed.
    """

    name = "plain"
    at_once = False
    one_by_one = None

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        inputs: Tensor,
        labels: Tensor,
        optimisation: OptimizerSettings,
        loss_of: Callable[[int], Loss] = cross_entropy_of,
    ) -> None:
        self._model = copy.deepcopy(model).train()
        self._layers, self._inputs, self._labels, self._loss_of = layers, inputs, labels, loss_of
        self._parameters = dict(self._model.named_parameters())
        self._buffers = {name: buffer.detach().clone() for name, buffer in self._model.named_buffers()}
        self._trained = [self._parameters[name] for layer in layers for name in layer.parameters]
        self._optimizer = optimisation.build(self._trained)

    def train_cohort(self, weights: Mapping[str, Tensor], tasks: Tasks, running: Aggregation) -> npt.NDArray[np.bool_]:
        """Add what each client conveys; return whose updates were accepted, shape (clients,)."""
        accepted = np.ones(len(tasks.clients), dtype=np.bool_)
        order = np.argsort(tasks.clients, kind="stable").tolist()  # whatever the order in which they are named
        for position, update in zip(order, self.updates(weights, map(tasks.task, order)), strict=True):
            try:
                running.add(update, position)
            except InvalidUpdate:
                accepted[position] = False
        return accepted

    def updates(self, weights: Mapping[str, Tensor], tasks: Iterable[ClientTask]) -> Iterator[Update]:
        """Yield what each task's client conveys, in their order; nothing of a client that got no layer done."""
        for task in tasks:
            yield self._train(weights, task)

    def _train(self, weights: Mapping[str, Tensor], task: ClientTask) -> Update:
        if not task.steps.any():
            return Update({}, {}, task.num_examples)
        self._load(weights)
        with fork_rng(self._inputs.device, task.seed):
            for step in range(int(task.steps.max())):
                self._take_step(task, step, weights)
        conveyed = [layer for layer, steps in zip(self._layers, task.steps, strict=True) if steps]
        names = [name for layer in conveyed for name in layer.parameters]
        with torch.no_grad():
            deltas = [self._parameters[name].detach() - weights[name] for name in names]
        buffers = self._copy_buffers(conveyed)
        steps = {layer.name: int(count) for layer, count in zip(self._layers, task.steps, strict=True) if count}
        return Update(dict(zip(names, deltas, strict=True)), steps, task.num_examples, buffers)

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
            for name, initial in self._buffers.items():  # those outside the state dict never travel
                self._model.get_buffer(name).copy_(weights.get(name, initial))
        self._optimizer.state.clear()

    def _take_step(self, task: ClientTask, step: int, anchor: Mapping[str, Tensor]) -> None:
        """Take an optimizer step over the layers that get so many; the others keep their weights and their buffers."""
        trained = task.steps > step
        depth = len(trained) - int(trained.argmax())
        left_alone = [layer for layer, own in zip(self._layers, trained, strict=True) if not own]
        passed_through = {name for layer in left_alone for name in layer.parameters}
        index = torch.as_tensor(task.batches[step], device=self._inputs.device)
        kept = self._copy_buffers(left_alone)
        loss = self._loss_of(task.client)(self._model(self._inputs[index]), self._labels[index])
        for name, gradient in truncated_gradients(loss, self._parameters, self._layers, depth).items():
            if name in passed_through:
                continue
            parameter = self._parameters[name]
            parameter.grad = gradient
            if task.proximal:
                parameter.grad = gradient + task.proximal * (parameter.detach() - anchor[name])
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in kept.items():
                self._model.get_buffer(name).copy_(value)

    def _copy_buffers(self, layers: Iterable[Layer]) -> dict[str, Tensor]:
        # Looked up each time: a module may replace a buffer instead of writing into it.
        return {name: self._model.get_buffer(name).detach().clone() for layer in layers for name in layer.buffers}
