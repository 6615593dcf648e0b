"""An experiment made ready: its data, divided among the clients, its model, and what computes their training."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from salf import data, models, seeds
from salf.devices import Cohort, CohortBatch, CompletionTimes, Workload
from salf.engines import Engine, Tasks, Training, choose_engine, find_device, fork_rng, use_fast_pooling
from salf.errors import InvalidSetting
from salf.experiment import DataSettings, Experiment
from salf.layers import find_layers, measure_costs, measure_passing
from salf.methods import RunContext, is_synchronous
from salf.simulation.evaluator import evaluate
from salf.values import Floats, Ints

# Floating-point operations of one forward pass. Threads that wait for each other on a busy machine cost far more than
# they save on small tensors.
_WORTH_THREADS = 2e8
_PILOTS, _PILOT_ROUNDS = 32, 2**31  # how many rounds are drawn to learn speeds, and where their numbers begin
# For so many clients is drawn at once, rounds ahead where a round has fewer.
_CLIENTS_AHEAD = 512


class SimulatedFederation:
    """The clients of an experiment and what they train; nothing in it changes from round to round.

    The data set and the model are those that the experiment names, unless they are given; a given model is copied,
    never changed. `dataset` and `model` are on the CPU, where all is decided that is to be the same wherever a run is
    computed; `inputs` and `labels` are the training examples on the `device` that computes, as are the global weights.
    `workload` is what each client is asked to do, `engine` computes it. What chance decides is drawn for
    `rounds_ahead` rounds at once. `build_engine` makes an engine that the experiment cannot choose by itself.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        model: nn.Module | None = None,
        dataset: data.Dataset | None = None,
        build_engine: Callable[[Training], Engine] | None = None,
    ) -> None:
        _check_given(experiment, model, dataset)
        self.experiment, self.device = experiment, find_device(experiment.device)
        settings = experiment.data
        self.dataset = data.load(settings.name, settings.root) if dataset is None else dataset.cpu()
        self.inputs, self.labels = self.dataset.inputs.to(self.device), self.dataset.labels.to(self.device)
        inputs, labels = _test_examples(self.dataset, experiment.evaluate.examples)
        self._tested = inputs.to(self.device), labels.to(self.device)
        self.partition = divide(self.dataset.labels.numpy(), settings, experiment.seed)
        if model is None:
            shape, classes = self.dataset.input_shape, self.dataset.num_classes
            model = models.build(experiment.model, shape, classes, experiment.seed)
        self.model = model = copy.deepcopy(model).cpu()
        self._tester = use_fast_pooling(copy.deepcopy(model).to(self.device))
        self._normalises = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())  # noqa: SLF001 - torch has no public name for all of them
        example = self.dataset.inputs[:2].clone()  # for models that write into what they are given
        self.layers = find_layers(model, example)
        costs = measure_costs(model, example, self.layers)
        if _skips_layers(experiment):
            costs = measure_passing(model, example, self.layers, costs)
        self.workload = Workload(costs, experiment.client.local_steps)
        client = experiment.client
        least = min(client.batch_size, int(self.partition.sizes.min()))
        _check_trainable(model, self.dataset, least)
        model = copy.deepcopy(model).to(self.device)
        _check_computes(model, self.inputs[:least])
        batch = client.batch_size * self.workload.costs.forward
        with _suitable_threads(batch):
            self.engine = self._choose_engine(model, build_engine)
        asked = client.cohort or settings.clients
        self._operations = (asked if self.engine.at_once else 1) * batch
        self.rounds_ahead = max(1, _CLIENTS_AHEAD // asked)
        self._cohorts: dict[int, Cohort] = {}
        self._drawn_for: CohortBatch | None = None
        self._drawn = np.empty((0, 0), dtype=np.int64)
        self._timed_for: CohortBatch | None = None
        self._timed: dict[Workload, CompletionTimes] = {}

    def suitable_threads(self) -> AbstractContextManager[None]:
        """Compute on one thread, within a context, where a round's passes are small."""
        return _suitable_threads(self._operations)

    def run_context(self) -> RunContext:
        """Return what is known before the first round; speeds are taken from rounds that are never played."""
        devices, client = self.experiment.devices, self.experiment.client
        first = self.draw_cohort(1)
        pilots = (replace(first, round=_PILOT_ROUNDS + number, cohort_batch=None) for number in range(_PILOTS))
        speeds = np.mean([1 / devices.times(self.workload, pilot).whole for pilot in pilots], axis=0)
        usual = devices.typical_seconds(self.workload)
        return RunContext(self.experiment.rounds, self.workload, usual, client.batch_size, client.lr, speeds)

    def initial_weights(self) -> dict[str, Tensor]:
        """Return the global state dict before the first round."""
        return {name: tensor.detach().to(self.device, copy=True) for name, tensor in self.model.state_dict().items()}

    def draw_cohort(self, round: int) -> Cohort:
        """Draw who is asked in a round, in the company of the rounds around it."""
        if self.rounds_ahead == 1:
            return self._draw_cohort(round)
        if round not in self._cohorts:
            first = round - (round - 1) % self.rounds_ahead
            cohort_batch = CohortBatch([self._draw_cohort(first + later) for later in range(self.rounds_ahead)])
            self._cohorts = {cohort.round: cohort for cohort in cohort_batch.cohorts}
        return self._cohorts[round]

    def _draw_cohort(self, round: int) -> Cohort:
        population, asked = self.experiment.data.clients, self.experiment.client.cohort
        if asked is None:
            clients = np.arange(population)
        else:
            drawn = seeds.stream(self.experiment.seed, "cohort", round).choice(population, asked, replace=False)
            clients = np.sort(drawn)
        return Cohort(clients, population, round, self.experiment.seed)

    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Return when the clients of a round finish what of a job."""
        devices, cohort_batch = self.experiment.devices, cohort.cohort_batch
        if cohort_batch is None or cohort.batch_fraction is not None:
            return devices.times(workload, cohort)
        if self._timed_for is not cohort_batch:
            self._timed_for, self._timed = cohort_batch, {}
        if workload not in self._timed:
            self._timed[workload] = devices.times(workload, cohort_batch.everyone)
        return self._timed[workload].of(cohort_batch.places(cohort.round))

    def in_examples(self, clients: Ints, batch_fraction: Floats) -> Floats:
        """Round shares of batches, shape (clients,), to whole examples: what is computed is what takes time.

        Nobody gets less than one example, or two where the model normalises over the batch.
        """
        given = np.minimum(self.partition.sizes[clients], self.experiment.client.batch_size)
        least = np.minimum(given, 2 if self._normalises else 1)
        return np.asarray(np.maximum(least, np.rint(given * batch_fraction)) / given, dtype=np.float64)

    def tasks(self, cohort: Cohort, steps: Ints, proximal: float = 0.0) -> Tasks:
        """Return what the clients compute, on batches of their own examples (all of them where they are too few)."""
        client = self.experiment.client
        sizes = self.partition.sizes[cohort.clients]
        given = np.minimum(sizes, client.batch_size)
        if cohort.batch_fraction is not None:
            given = np.rint(given * cohort.batch_fraction).astype(np.int64)
        chosen, shape = self._examples(cohort), (-1, client.local_steps, client.batch_size)
        full = bool((given == client.batch_size).all())
        batches = chosen.reshape(shape) if full else _padded(chosen, given, shape)
        return Tasks(cohort.clients, steps, batches, sizes, cohort.seed, cohort.round, proximal, full)

    def _examples(self, cohort: Cohort) -> Ints:
        """Return the examples of each client in the order in which it takes them, for whole batches."""
        cohort_batch, count = (
            cohort.cohort_batch,
            self.experiment.client.batch_size * self.experiment.client.local_steps,
        )
        if cohort_batch is None:
            return self._permuted(cohort.clients, cohort.uniforms("batch", count))
        if self._drawn_for is not cohort_batch:
            self._drawn_for, self._drawn = (
                cohort_batch,
                self._permuted(cohort_batch.clients, cohort_batch.uniforms("batch", count)),
            )
        return self._drawn[cohort_batch.places(cohort.round)]

    def _permuted(self, clients: Ints, uniforms: Floats) -> Ints:
        """Return as many examples of each client's own as there are uniform numbers, as indices of the data set."""
        drawn = seeds.permuted(uniforms, self.partition.sizes[clients])
        examples: Ints = self.partition.order[self.partition.offsets[clients][:, None] + drawn]
        return examples

    def is_tested(self, round: int) -> bool:
        """Say whether the global model is tested after a round."""
        return round % self.experiment.evaluate.every == 0 or round >= self.experiment.rounds

    def evaluate(self, round: int, weights: Mapping[str, Tensor]) -> tuple[float | None, float | None]:
        """Return accuracy and loss where `round` is one to be tested; a loss that is not finite counts as none."""
        if not self.is_tested(round):
            return None, None
        self._tester.load_state_dict(weights)
        accuracy, loss = evaluate(self._tester, *self._tested)
        return accuracy, loss if math.isfinite(loss) else None

    def _choose_engine(self, model: nn.Module, build: Callable[[Training], Engine] | None) -> Engine:
        client = self.experiment.client
        batch = min(client.batch_size, int(self.partition.sizes.max()))
        training = Training(
            model,
            self.layers,
            self.workload.costs,
            self.inputs,
            self.labels,
            client,
            batch,
            client.local_steps,
        )
        method = self.experiment.method
        if build is not None:
            return build(training)
        # Sub-models are trained, on engines of their own: there is nothing to choose or to check.
        chosen = "plain" if is_synchronous(method) and method.submodels is not None else self.experiment.engine
        rule = method.aggregation_rule if is_synchronous(method) else None
        return choose_engine(chosen, training, rule, skips_layers=_skips_layers(self.experiment))


def _padded(chosen: Ints, given: Ints, shape: tuple[int, ...]) -> Ints:
    """Cut each client's examples in batches of as many as it is `given`, shape (clients,), with −1 at their ends."""
    _, steps, size = shape
    batches = np.full((len(given), steps, size), -1, dtype=np.int64)
    for batch in set(given.tolist()):
        alike = given == batch
        batches[alike, :, :batch] = chosen[alike, : batch * steps].reshape(-1, steps, batch)
    return batches


def _skips_layers(experiment: Experiment) -> bool:
    return is_synchronous(experiment.method) and experiment.method.skips_layers


def divide(labels: Ints, settings: DataSettings, seed: int) -> data.Partition:
    """Divide the training examples among the clients, as the settings say."""
    if settings.partition == "shards":
        return data.shards(labels, settings.clients, seed, settings.shards_per_client)
    if settings.partition == "dirichlet":
        return data.dirichlet(labels, settings.clients, seed, settings.alpha)
    if settings.partition == "label-order":
        return data.label_order(labels, settings.clients, seed, settings.size_sigma)
    return data.iid(labels, settings.clients, seed, settings.size_sigma)


def _test_examples(dataset: data.Dataset, count: int | None) -> tuple[Tensor, Tensor]:
    """Return inputs and labels to test on: all, or `count` of them, whatever the run's seed."""
    if count is None or count >= len(dataset.test_labels):
        return dataset.test_inputs, dataset.test_labels
    chosen = np.sort(seeds.stream(0, "test-examples").permutation(len(dataset.test_labels))[:count])
    index = torch.from_numpy(chosen)
    return dataset.test_inputs[index], dataset.test_labels[index]


@contextmanager
def _suitable_threads(operations: float) -> Iterator[None]:
    """Compute on one thread where passes are so small that sharing them out costs more than it saves."""
    threads = torch.get_num_threads()
    if operations < _WORTH_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_given(experiment: Experiment, model: nn.Module | None, dataset: data.Dataset | None) -> None:
    """Raise `InvalidSetting` unless a simulation can begin with these."""
    if not isinstance(experiment, Experiment):
        raise InvalidSetting(f"experiment is {experiment!r}; give an Experiment, such as Experiment.load('digits')")
    if model is not None and not isinstance(model, nn.Module):
        raise InvalidSetting(f"model is {model!r}; give an nn.Module, already built")
    if model is not None and any(parameter.is_meta for parameter in model.parameters()):
        raise InvalidSetting("the model has parameters without values, on the device 'meta'; build it on another")
    if dataset is None and experiment.data.name == "tensors":
        raise InvalidSetting("data.name is 'tensors': give the data in Python, simulate(experiment, dataset=...)")


def _check_trainable(model: nn.Module, dataset: data.Dataset, rows: int) -> None:
    """Raise `InvalidSetting` unless `model` can be trained on `rows` examples at a time and has an output per class."""
    twin = copy.deepcopy(model).train()
    try:
        with torch.random.fork_rng(devices=[]):
            outputs: object = twin(dataset.inputs[:rows].clone())
    except Exception as error:
        raise InvalidSetting(
            f"the model cannot be trained on a batch of {rows}, the smallest that a client would use ({error}); raise "
            "client.batch_size, give every client more examples, or choose a model without batch normalisation"
        ) from error
    classes = 1 + int(max(dataset.labels.max(), dataset.test_labels.max()))
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else None
    if shape is None or len(shape) != 2 or shape[0] != rows or shape[1] < classes:
        given = f"a tensor of shape {shape}" if shape else f"a {type(outputs).__name__}"
        raise InvalidSetting(
            f"for {rows} examples the model returns {given}, but scores of shape ({rows}, {classes}) or wider are "
            f"needed, one per label from 0 to {classes - 1}; change the model's last layer or the labels"
        )


def _check_computes(model: nn.Module, inputs: Tensor) -> None:
    """Raise `InvalidSetting` unless `model`, which the CPU can compute, computes on the device of the inputs, too."""
    if inputs.is_cpu:
        return
    twin = copy.deepcopy(model).train()
    try:
        with fork_rng(inputs.device), torch.no_grad():
            twin(inputs.clone())
    except Exception as error:
        raise InvalidSetting(
            f"device is '{inputs.device}', on which the model cannot compute ({error}); let it make its tensors where "
            "its inputs are, and keep those that it needs as parameters or buffers, or choose device 'cpu'"
        ) from error
