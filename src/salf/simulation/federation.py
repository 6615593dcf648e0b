"""The set-up of a simulation: divided data, the model and its costs, and the engine that trains it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from salf import data, models
from salf.devices import Workload
from salf.engines import Engine, Training, choose_engine, find_device
from salf.experiment import DataSettings, Experiment
from salf.layers import find_layers, measure_costs, measure_passing, twin_of
from salf.methods import is_synchronous
from salf.simulation.compatibility import check_arguments, check_device, check_trainable
from salf.simulation.evaluator import Evaluator, has_batchnorm
from salf.simulation.sampler import Sampler
from salf.values import Ints

BuildEngine = Callable[[Training], Engine]

# Floating-point operations of one forward pass. Threads that wait for each other on a busy machine cost far more than
# they save on small tensors.
_WORTH_THREADS = 2e8


class SimulatedFederation:
    """The clients of an experiment and what they train; nothing in it changes from round to round.

    Everything that must not depend on the device is decided on the CPU, with `dataset` and `model`.

    Args:
        experiment: What to simulate.
        model: A model that replaces the experiment's, or None; it is copied, never changed.
        dataset: Data that replaces the experiment's, or None.
        build: Builds an engine that the experiment cannot choose by itself.

    Attributes:
        experiment: The experiment.
        device: Where the training is computed and the global weights lie.
        dataset: All data, on the CPU.
        partition: Which training examples each client holds.
        model: The model with its initial weights, on the CPU.
        layers: The layers of the model, input to output.
        workload: What a client computes in a round.
        training: What the clients train, on what and how, with all tensors on `device`.
        engine: What computes the training of a cohort.
        sampler: Draws cohorts, completion times and batches.
        evaluator: Tests the global model.

    Raises:
        InvalidSetting: Experiment, model and data do not fit together.
        UnsuitableModel: The model cannot be trained layer by layer.
        DataUnavailable: The data set cannot be loaded.
    """

    def __init__(
        self, experiment: Experiment, model: nn.Module | None, dataset: data.Dataset | None, build: BuildEngine | None
    ) -> None:
        check_arguments(experiment, model, dataset)
        self.experiment, self.device = experiment, find_device(experiment.device)
        settings = experiment.data
        self.dataset = data.load(settings.name, settings.root) if dataset is None else dataset.cpu()
        self.partition = divide(self.dataset.labels.numpy(), settings, experiment.seed)
        if model is None:
            shape, classes = self.dataset.input_shape, self.dataset.num_classes
            model = models.build(experiment.model, shape, classes, experiment.seed)
        self.model = twin_of(model).cpu()
        example = self.dataset.inputs[:2].clone()  # for models that change their inputs in place
        self.layers = find_layers(self.model, example)
        self.workload = self._measure_workload(example)
        self.training = self._build_training()
        self._batch_operations = experiment.client.batch_size * self.workload.costs.forward
        with _limit_threads(self._batch_operations):
            self.engine = self._choose_engine() if build is None else build(self.training)
        smallest = 2 if has_batchnorm(self.model) else 1
        self.sampler = Sampler(experiment, self.partition, self.workload, smallest_batch=smallest)
        self.evaluator = Evaluator(experiment, self.model, self.dataset, self.training.inputs)

    def suitable_threads(self) -> AbstractContextManager[None]:
        """Return a context that computes on one thread if the passes of a round are small."""
        return _limit_threads((self.sampler.cohort_size if self.engine.at_once else 1) * self._batch_operations)

    def initial_weights(self) -> dict[str, Tensor]:
        """Return a copy of the global state dict before the first round, on `device`."""
        return {name: tensor.detach().to(self.device, copy=True) for name, tensor in self.model.state_dict().items()}

    def _measure_workload(self, example: Tensor) -> Workload:
        costs, method = measure_costs(self.model, example, self.layers), self.experiment.method
        if is_synchronous(method) and method.skips_layers:
            costs = measure_passing(self.model, example, self.layers, costs)
        return Workload(costs, self.experiment.client.local_steps)

    def _build_training(self) -> Training:
        """Return what the clients train, after a check that they can."""
        client, sizes = self.experiment.client, self.partition.sizes
        smallest, largest = (min(client.batch_size, int(size)) for size in (sizes.min(), sizes.max()))
        check_trainable(self.model, self.layers, self.dataset, smallest)
        model, costs = copy.deepcopy(self.model).to(self.device), self.workload.costs
        inputs, labels = self.dataset.inputs.to(self.device), self.dataset.labels.to(self.device)
        check_device(model, inputs[:smallest])
        return Training(model, self.layers, costs, inputs, labels, client, largest, client.local_steps)

    def _choose_engine(self) -> Engine:
        method = self.experiment.method
        if not is_synchronous(method):
            return choose_engine(self.experiment.engine, self.training, None)
        # Sub-models have engines of their own, so no choice is left.
        name = self.experiment.engine if method.submodels is None else "plain"
        return choose_engine(name, self.training, method.aggregation_rule, skips_layers=method.skips_layers)


def divide(labels: Ints, settings: DataSettings, seed: int) -> data.Partition:
    """Divide the training examples among the clients.

    Args:
        labels: The training labels, shape (examples,).
        settings: How to divide them, and among how many clients.
        seed: The seed of the run.
    """
    if settings.partition == "shards":
        return data.shards(labels, settings.clients, seed, settings.shards_per_client)
    if settings.partition == "dirichlet":
        return data.dirichlet(labels, settings.clients, seed, settings.alpha)
    if settings.partition == "label-order":
        return data.label_order(labels, settings.clients, seed, settings.size_sigma)
    return data.iid(labels, settings.clients, seed, settings.size_sigma)


@contextmanager
def _limit_threads(operations: float) -> Iterator[None]:
    """Compute on one thread if a pass of so many operations would lose more time by sharing than it gains."""
    threads = torch.get_num_threads()
    if operations < _WORTH_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
