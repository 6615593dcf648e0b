"""The synchronous round loop on a virtual clock."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from salf import data, models, seeds
from salf.aggregation import Aggregated, Aggregation, ClientMemory
from salf.costs import measure_costs
from salf.devices import Cohort, Job
from salf.engines import Engine, Tasks, Training, choose_engine
from salf.errors import InvalidSetting
from salf.evaluate import evaluate
from salf.experiment import DataSettings, Experiment
from salf.layers import find_layers
from salf.methods import Schedule, Situation
from salf.reach import ObservedReach
from salf.records import RoundRecord

# Floating-point operations of one forward pass. Threads that wait for each other on a busy machine cost far more than
# they save on small tensors.
_WORTH_THREADS = 2e8


@dataclass(frozen=True)
class ServerState:
    """All that one round hands on to the next: with the experiment, it determines the rest of the run.

    `round` counts the rounds that are done, `time_s` is the virtual time, `weights` the global model's state dict.
    """

    round: int
    time_s: float
    weights: Mapping[str, Tensor]
    observed: ObservedReach
    memory: ClientMemory = field(default_factory=dict)


class Simulation:
    """An experiment made ready to run: `initial_state` is where it starts, `play` takes a state one round further.

    `engine` computes the clients' training, `job` is what each of them is asked to do.

    The data set and the model are those that the experiment names, unless they are given; a given model is copied,
    never changed.
    """

    def __init__(
        self, experiment: Experiment, *, model: nn.Module | None = None, dataset: data.Dataset | None = None
    ) -> None:
        if not isinstance(experiment, Experiment):
            raise InvalidSetting(f"experiment is {experiment!r}; give an Experiment, such as Experiment.load('digits')")
        if model is not None and not isinstance(model, nn.Module):
            raise InvalidSetting(f"model is {model!r}; give an nn.Module, already built")
        self.experiment = experiment
        settings = experiment.data
        if dataset is None and settings.name == "tensors":
            raise InvalidSetting("data.name is 'tensors': give the data in Python, simulate(experiment, dataset=...)")
        self.dataset = data.load(settings.name, settings.root) if dataset is None else dataset
        if any(tensor.device.type != "cpu" for tensor in (self.dataset.inputs, self.dataset.labels)) or (
            model is not None and any(parameter.device.type != "cpu" for parameter in model.parameters())
        ):
            raise InvalidSetting("the simulator computes on the CPU: move the model and the data there (.cpu())")
        self.partition = divide(self.dataset.labels.numpy(), settings, experiment.seed)
        if model is None:
            shape, classes = self.dataset.input_shape, self.dataset.num_classes
            model = models.build(experiment.model, shape, classes, experiment.seed)
        self._model = copy.deepcopy(model)
        example = self.dataset.inputs[:2].clone()  # for models that write into what they are given
        self.layers = find_layers(model, example)
        self.job = Job(measure_costs(model, example, self.layers), experiment.client.local_steps)
        _check_trainable(model, self.dataset, min(experiment.client.batch_size, int(self.partition.sizes.min())))
        client = experiment.client
        batch = client.batch_size * self.job.costs.forward
        with _suitable_threads(batch):
            self.engine = self._choose_engine(model)
        together = (client.cohort or settings.clients) if self.engine.at_once else 1
        self._operations = together * batch

    def initial_state(self) -> ServerState:
        """Return the state before the first round."""
        weights = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        return ServerState(0, 0.0, weights, ObservedReach(len(self.layers)))

    def play(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """Play the round after `state`; return the state after it and its record."""
        with self.suitable_threads():
            return self._play(state)

    @contextmanager
    def suitable_threads(self) -> Iterator[None]:
        """Compute on one thread where a round's passes are small."""
        with _suitable_threads(self._operations):
            yield

    def tasks(self, state: ServerState) -> Tasks:
        """Return what the clients of the round after `state` compute."""
        cohort, schedule = self._plan(state)
        return self._tasks(cohort, schedule.steps)

    def _choose_engine(self, model: nn.Module) -> Engine:
        client = self.experiment.client
        batch = min(client.batch_size, int(self.partition.sizes.max()))
        training = Training(
            model,
            self.layers,
            self.job.costs,
            self.dataset.inputs,
            self.dataset.labels,
            client,
            batch,
            client.local_steps,
        )
        return choose_engine(self.experiment.engine, training, self.experiment.method.aggregation_rule)

    def _play(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        cohort, schedule = self._plan(state)
        result, accepted = self._train(state, cohort, schedule)
        after = ServerState(
            cohort.round,
            state.time_s + schedule.seconds,
            result.state,
            state.observed.observe(cohort.clients, (schedule.steps > 0) & accepted[:, None]),
            result.memory,
        )
        accuracy, loss = self._evaluate(after)
        record = RoundRecord(
            round=after.round,
            time_s=after.time_s,
            deadline_s=schedule.deadline_seconds,
            clients=len(cohort.clients),
            contributors=result.contributors,
            work_kept=self._work_kept(schedule, accepted),
            rejected=int((~accepted).sum()),
            accuracy=accuracy,
            loss=loss,
            engine=self.engine.name,
        )
        return after, record

    def _plan(self, state: ServerState) -> tuple[Cohort, Schedule]:
        """Draw who is asked in the round after `state`, and how far they get."""
        experiment = self.experiment
        cohort = self._draw_cohort(state.round + 1)
        times = experiment.devices.times(self.job, cohort)
        return cohort, experiment.method.schedule(times, experiment.devices.typical_seconds(self.job))

    def _train(
        self, state: ServerState, cohort: Cohort, schedule: Schedule
    ) -> tuple[Aggregated, npt.NDArray[np.bool_]]:
        """Let the cohort train, and aggregate what it conveys; return the result and whose updates were accepted."""
        method, devices = self.experiment.method, self.experiment.devices
        situation = Situation(devices, self.job, cohort, schedule.deadline_seconds, state.observed)
        running = Aggregation(
            state.weights,
            self.layers,
            method.aggregation_rule,
            reach=method.reach(situation),
            clients=cohort.clients.tolist(),
            memory=state.memory,
        )
        accepted = self.engine.contribute(state.weights, self._tasks(cohort, schedule.steps), running)
        return running.finish(len(cohort.clients)), accepted

    def _draw_cohort(self, round: int) -> Cohort:
        population, asked = self.experiment.data.clients, self.experiment.client.cohort
        if asked is None:
            clients = np.arange(population)
        else:
            drawn = seeds.stream(self.experiment.seed, "cohort", round).choice(population, asked, replace=False)
            clients = np.sort(drawn)
        return Cohort(clients, population, round, self.experiment.seed)

    def _tasks(self, cohort: Cohort, steps: npt.NDArray[np.int64]) -> Tasks:
        """Return what the clients compute, on batches of their own examples (all of them where they are too few)."""
        client = self.experiment.client
        sizes = self.partition.sizes[cohort.clients]
        wanted = client.batch_size * client.local_steps
        drawn = seeds.permuted(cohort.seed, "batch", cohort.round, cohort.clients, sizes, wanted)
        chosen = self.partition.order[self.partition.offsets[cohort.clients][:, None] + drawn]
        batches = np.full((len(sizes), client.local_steps, client.batch_size), -1, dtype=np.int64)
        for batch in np.unique(np.minimum(sizes, client.batch_size)).tolist():
            alike = np.minimum(sizes, client.batch_size) == batch
            own = chosen[alike, : batch * client.local_steps]
            batches[alike, :, :batch] = own.reshape(-1, client.local_steps, batch)
        return Tasks(cohort.clients, steps, batches, sizes, cohort.seed, cohort.round)

    def _evaluate(self, state: ServerState) -> tuple[float | None, float | None]:
        """Return accuracy and loss where this round is one to be tested; a loss that is not finite counts as none."""
        if state.round % self.experiment.evaluate.every and state.round < self.experiment.rounds:
            return None, None
        self._model.load_state_dict(state.weights)
        accuracy, loss = evaluate(self._model, self.dataset.test_inputs, self.dataset.test_labels)
        return accuracy, loss if math.isfinite(loss) else None

    def _work_kept(self, schedule: Schedule, accepted: npt.NDArray[np.bool_]) -> float | None:
        """Return the share of the finished backward work that entered the model."""
        costs = np.asarray(self.job.costs.backward)
        finished = float((schedule.finished @ costs).sum())
        return float((schedule.steps[accepted] @ costs).sum()) / finished if finished else None


def simulate(
    experiment: Experiment, *, model: nn.Module | None = None, dataset: data.Dataset | None = None
) -> Iterator[RoundRecord]:
    """Run an experiment on the virtual clock, yielding one record per round.

    `model` and `dataset` stand in for those that the experiment names; the model is copied, never changed.

    >>> experiment = Experiment.load("digits", rounds=2, **{"data.clients": 4})
    >>> [record.round for record in simulate(experiment)]
    [1, 2]
    """
    simulation = Simulation(experiment, model=model, dataset=dataset)
    state = simulation.initial_state()
    while state.round < experiment.rounds:
        state, record = simulation.play(state)
        yield record


def divide(labels: npt.NDArray[np.int64], settings: DataSettings, seed: int) -> data.Partition:
    """Divide the training examples among the clients, as the settings say."""
    if settings.partition == "shards":
        return data.shards(labels, settings.clients, seed, settings.shards_per_client)
    if settings.partition == "dirichlet":
        return data.dirichlet(labels, settings.clients, seed, settings.alpha)
    if settings.partition == "label-order":
        return data.label_order(labels, settings.clients, seed, settings.size_sigma)
    return data.iid(labels, settings.clients, seed, settings.size_sigma)


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
