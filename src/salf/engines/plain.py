"""The plain engine: one client after another, on one copy of the model. The other engines must agree with it."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from salf.aggregation import Aggregation, Weights
from salf.client import truncated_gradients
from salf.engines.accelerator import fork_rng
from salf.engines.tasks import ClientTask, Tasks, Training, add_each, update_of
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

    def train_cohort(self, weights: Weights, tasks: Tasks, running: Aggregation) -> npt.NDArray[np.bool_]:
        """Add each client's update; return which were accepted, shape (clients,)."""
        return add_each(running, tasks, lambda place: self._train(weights, tasks.task(place)))

    def updates(self, weights: Weights, tasks: Iterable[ClientTask]) -> Iterator[Update]:
        """Yield each task's update, in their order; an empty one for a client that finishes no layer."""
        for task in tasks:
            yield self._train(weights, task)

    def _train(self, weights: Weights, task: ClientTask) -> Update:
        if not task.steps.any():
            return Update({}, {}, task.num_examples)
        self._load(weights)
        with fork_rng(self._training.inputs.device, task.seed):
            for step in range(int(task.steps.max())):
                self._take_step(task, step, weights)

        def delta_of(name: str) -> Tensor:
            return self._parameters[name].detach() - weights[name]

        with torch.no_grad():
            sizes = task.batches.shape[1], task.num_examples
            return update_of(self._training.layers, task.steps, *sizes, delta_of, self._copy_buffer)

    def _load(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
            for name, initial in self._buffers.items():  # buffers outside the state dict are never sent
                self._model.get_buffer(name).copy_(weights.get(name, initial))
        self._optimizer.state.clear()

    def _take_step(self, task: ClientTask, step: int, anchor: Weights) -> None:
        """Take one optimizer step over the layers that take it; the others keep their weights and their buffers."""
        trained = task.steps > step
        depth = len(trained) - int(trained.argmax())
        untrained = [layer for layer, own in zip(self._training.layers, trained, strict=True) if not own]
        passed_through = {name for layer in untrained for name in layer.parameters}
        index = torch.as_tensor(task.batches[step], device=self._training.inputs.device)
        kept = {name: self._copy_buffer(name) for layer in untrained for name in layer.buffers}
        outputs = self._model(self._training.inputs[index])
        loss = self._training.loss_of(task.client)(outputs, self._training.labels[index])
        for name, gradient in truncated_gradients(loss, self._parameters, self._training.layers, depth).items():
            if name in passed_through:
                continue
            parameter = self._parameters[name]
            pull = task.proximal * (parameter.detach() - anchor[name]) if task.proximal else None
            parameter.grad = gradient if pull is None else gradient + pull
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in kept.items():
                self._model.get_buffer(name).copy_(value)

    def _copy_buffer(self, name: str) -> Tensor:
        # Looked up each time: a module may replace a buffer instead of writing into it.
        return self._model.get_buffer(name).detach().clone()
