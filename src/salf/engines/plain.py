"""The plain engine: one client after another, on one copy of the model. The other engines must agree with it."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from salf.aggregation import Aggregation
from salf.client import truncated_gradients
from salf.engines.accelerator import fork_rng
from salf.engines.tasks import ClientTask, Tasks, add_each
from salf.engines.training import Training
from salf.layers import Layer
from salf.update import Update


class PlainEngine:
    """Trains a cohort's clients in turn, each from the global weights, and backpropagates only as deep as it gets.

    It is the reference for the other engines. The model is copied, never changed.

    >>> from torch import nn
    >>> from salf.layers import find_layers, measure_costs
    >>> from salf.engines import OptimizerSettings, Training
    >>> model, inputs, labels = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.ones(4, 2), torch.arange(4) % 2
    >>> layers = find_layers(model)
    >>> costs = measure_costs(model, inputs, layers)
    >>> engine = PlainEngine(Training(model, layers, costs, inputs, labels, OptimizerSettings(), 2, 1))
    >>> task = ClientTask(0, np.array([0, 1]), np.array([[0, 1]]), num_examples=2, seed=0)
    >>> [sorted(update.deltas) for update in engine.updates(model.state_dict(), [task])]
    [['1.bias', '1.weight']]
    """

    name = "plain"
    at_once = False
    one_by_one = None

    def __init__(self, training: Training) -> None:
        self._model = copy.deepcopy(training.model).train()
        self._training = replace(training, model=self._model)
        self._parameters = dict(self._model.named_parameters())
        self._buffers = {name: buffer.detach().clone() for name, buffer in self._model.named_buffers()}
        trained = [self._parameters[name] for layer in training.layers for name in layer.parameters]
        self._optimizer = training.optimizer.build(trained)

    def train_cohort(self, weights: Mapping[str, Tensor], tasks: Tasks, running: Aggregation) -> npt.NDArray[np.bool_]:
        """Add each client's update; return which were accepted, shape (clients,)."""
        return add_each(running, tasks, lambda place: self._train(weights, tasks.task(place)))

    def updates(self, weights: Mapping[str, Tensor], tasks: Iterable[ClientTask]) -> Iterator[Update]:
        """Yield each task's update, in their order; an empty one for a client that finishes no layer."""
        for task in tasks:
            yield self._train(weights, task)

    def _train(self, weights: Mapping[str, Tensor], task: ClientTask) -> Update:
        if not task.steps.any():
            return Update({}, {}, task.num_examples)
        self._load(weights)
        with fork_rng(self._training.inputs.device, task.seed):
            for step in range(int(task.steps.max())):
                self._take_step(task, step, weights)
        sent = [layer for layer, steps in zip(self._training.layers, task.steps, strict=True) if steps]
        names = [name for layer in sent for name in layer.parameters]
        with torch.no_grad():
            deltas = [self._parameters[name].detach() - weights[name] for name in names]
        buffers = self._copy_buffers(sent)
        steps = {
            layer.name: int(count) for layer, count in zip(self._training.layers, task.steps, strict=True) if count
        }
        return Update(dict(zip(names, deltas, strict=True)), steps, task.num_examples, buffers)

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
            for name, initial in self._buffers.items():  # buffers outside the state dict are never sent
                self._model.get_buffer(name).copy_(weights.get(name, initial))
        self._optimizer.state.clear()

    def _take_step(self, task: ClientTask, step: int, anchor: Mapping[str, Tensor]) -> None:
        """Take one optimizer step over the layers that take it; the others keep their weights and their buffers."""
        trained = task.steps > step
        depth = len(trained) - int(trained.argmax())
        untrained = [layer for layer, own in zip(self._training.layers, trained, strict=True) if not own]
        passed_through = {name for layer in untrained for name in layer.parameters}
        index = torch.as_tensor(task.batches[step], device=self._training.inputs.device)
        kept = self._copy_buffers(untrained)
        loss = self._training.loss_of(task.client)(
            self._model(self._training.inputs[index]), self._training.labels[index]
        )
        for name, gradient in truncated_gradients(loss, self._parameters, self._training.layers, depth).items():
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
