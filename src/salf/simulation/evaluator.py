"""Tests of the global model: when, on which examples, and with which BatchNorm statistics."""

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from salf import seeds
from salf.data import Dataset
from salf.engines import use_fast_pooling
from salf.experiment import Experiment
from salf.methods import is_synchronous

# The common base of BatchNorm in one, two and three dimensions.
_BatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - torch has no public name for it
_BATCH = 2048
_STATISTICS_BATCH = 512


class Evaluator:
    """Tests the global model during a run.

    Clients that train sub-models keep no BatchNorm statistics, so for their methods the server measures them before
    each test, over all training examples.

    Args:
        experiment: Says when to test, and on how many examples.
        model: The global model; it is copied, never changed.
        dataset: Its test examples are used, in every run of the experiment the same.
        training_inputs: The training inputs, on the device that computes.
    """

    def __init__(self, experiment: Experiment, model: nn.Module, dataset: Dataset, training_inputs: Tensor) -> None:
        self._experiment, self._training_inputs = experiment, training_inputs
        device, method = training_inputs.device, experiment.method
        inputs, labels = _test_examples(dataset, experiment.evaluate.examples)
        self._examples = inputs.to(device), labels.to(device)
        self._tested = use_fast_pooling(copy.deepcopy(model).to(device))
        trains_submodels = is_synchronous(method) and method.submodels is not None
        self._measured = copy.deepcopy(model).to(device) if trains_submodels else None

    def is_due(self, round: int) -> bool:
        """Return whether the global model is tested after a round."""
        return round % self._experiment.evaluate.every == 0 or round >= self._experiment.rounds

    def complete(self, round: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the global state dict after a round, with the BatchNorm statistics that its test needs."""
        if self._measured is None or not self.is_due(round):
            return weights
        inputs = self._training_inputs
        order = torch.from_numpy(seeds.stream(self._experiment.seed, "statistics").permutation(len(inputs)))
        return weights | static_statistics(self._measured, weights, inputs, order.to(inputs.device))

    def test(self, round: int, weights: Mapping[str, Tensor]) -> tuple[float | None, float | None]:
        """Test the global model if a test is due.

        Args:
            round: The round that has ended.
            weights: The state dict after it.

        Returns:
            Accuracy between 0 and 1, and mean cross-entropy; None where no test is due, or the loss is not finite.
        """
        if not self.is_due(round):
            return None, None
        self._tested.load_state_dict(weights)
        accuracy, loss = evaluate(self._tested, *self._examples)
        return accuracy, loss if math.isfinite(loss) else None


def evaluate(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy of a classifier.

    Args:
        model: A model that returns scores of shape (examples, classes). It is used in evaluation mode, and each of its
            modules is left in its own mode.
        inputs: The examples, on the model's device.
        labels: Their classes, shape (examples,).

    >>> evaluate(nn.Identity(), torch.tensor([[9.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1]))[0]
    0.5
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    correct, total = 0, 0.0
    try:
        with torch.inference_mode():
            for start in range(0, len(labels), _BATCH):
                truth = labels[start : start + _BATCH]
                outputs = model(inputs[start : start + _BATCH])
                correct += int((outputs.argmax(dim=1) == truth).sum())
                total += float(nn.functional.cross_entropy(outputs, truth, reduction="sum"))
    finally:
        for module, training in modes.items():
            module.training = training
    return correct / len(labels), total / len(labels)


def _test_examples(dataset: Dataset, count: int | None) -> tuple[Tensor, Tensor]:
    """Return test inputs and labels: all, or the same `count` of them for every seed."""
    if count is None or count >= len(dataset.test_labels):
        return dataset.test_inputs, dataset.test_labels
    chosen = seeds.stream(0, "test-examples").permutation(len(dataset.test_labels))[:count]
    places = torch.from_numpy(np.sort(chosen))
    return dataset.test_inputs[places], dataset.test_labels[places]


def has_batchnorm(model: nn.Module) -> bool:
    """Return whether a model normalizes over the batch, so that it trains on two examples or more."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def static_statistics(
    model: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor, order: Tensor
) -> dict[str, Tensor]:
    """Measure BatchNorm's running statistics of a model in one pass over examples.

    This is HeteroFL's static batch normalization (arXiv 2010.01264): cumulative averages over batches, as with momentum
    None. Each layer sees inputs that the layers before it have normalized by the batch. All other modules are in
    evaluation mode.

    Args:
        model: The model; it is copied, never changed.
        weights: The state dict to measure with.
        inputs: The training inputs, on the model's device.
        order: In which order the examples are taken, as indices of `inputs`. They are cut into batches of at most 512,
            whose sizes differ by at most one.

    Returns:
        The statistics by buffer name.

    >>> norm = nn.BatchNorm1d(1)
    >>> found = static_statistics(norm, norm.state_dict(), torch.tensor([[1.0], [2.0], [6.0]]), torch.arange(3))
    >>> found["running_mean"].item(), found["running_var"].item()
    (3.0, 7.0)
    """
    twin = copy.deepcopy(model).eval()
    modules = [module for module in twin.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not modules:
        return {}
    twin.load_state_dict(weights)
    for module in modules:
        module.reset_running_stats()
        module.momentum = None
        module.train()
    with torch.inference_mode():
        for batch in order.tensor_split(-(-len(order) // _STATISTICS_BATCH)):
            twin(inputs[batch])
    tracked = {id(buffer) for module in modules for buffer in module.buffers()}
    return {name: buffer.clone() for name, buffer in twin.named_buffers() if id(buffer) in tracked}
