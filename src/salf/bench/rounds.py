"""The time of simulated rounds: the fused engine, whole rounds, and growth with the number of clients."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from salf.aggregation import Aggregation, Contributors
from salf.bench.case import Case, Figure, time_in_turn, timed
from salf.data import Dataset
from salf.devices import UniformDepthDevices
from salf.engines import CPU, EngineName, Tasks
from salf.experiment import ClientSettings, DataSettings, EvaluateSettings, Experiment
from salf.methods import Salf
from salf.models import Cnn, Mlp, Model, ResidualNet, Transformer, Vgg, build
from salf.simulation import ServerState, Simulation

_BATCH = 16
_CLASSES = 10
_MNIST, _CIFAR = (1, 28, 28), (3, 32, 32)
_GROWTH = (30, 100, 300, 1000, 3000)
_NEVER = 10**6


@dataclass(frozen=True)
class Subject:
    """What a round computes.

    Attributes:
        model: The network.
        shape: The shape of one example.
        clients: How many clients train it.
    """

    model: Model
    shape: tuple[int, ...]
    clients: int


_MLP = Subject(Mlp(hidden=(32, 16)), _MNIST, 30)
SUBJECTS = {
    "mlp-30": _MLP,
    "mlp-1000": replace(_MLP, clients=1000),
    "cnn-30": Subject(Cnn(), _MNIST, 30),
    "vgg11-30": Subject(Vgg(), _CIFAR, 30),
    "residual-30": Subject(ResidualNet(), _CIFAR, 30),
    "transformer-30": Subject(Transformer(), _CIFAR, 30),
}
_FUSED = {"mlp-30": 0.8, "mlp-1000": 0.8, "cnn-30": 0.5, "vgg11-30": 0.75, "residual-30": 0.75, "transformer-30": 0.7}
_WHOLE = {"mlp-30": 1.5, "mlp-1000": 1.1}


def round_cases(device: torch.device) -> list[Case]:
    """Return the cases of the fused engine, of whole rounds, and of the plain loop on a device."""
    against = "against one centralised forward and backward pass over the same examples, gathered from the same data"
    kinds = (("fused", "fused engine", _fused_ratio, _FUSED), ("round", "simulated round", _round_ratio, _WHOLE))
    ratios = [
        Case(f"{kind}/{name}", f"{what} {against}", most, "≤", "×", partial(measure, device, SUBJECTS[name]))
        for kind, what, measure, targets in kinds
        for name, most in targets.items()
    ]
    what = "plain loop of model copies against the fused engine"
    return [*ratios, Case("loop/mlp-30", what, 20, "≥", "×", partial(_copies_ratio, device))]


def growth_case(device: torch.device) -> Case:
    """Return the case of the growth of a round's time with the number of clients."""
    what = "exponent of a round's time in the number of clients, 30 to 3000"
    return Case("growth/mlp", what, 1.05, "≤", "", partial(_growth_exponent, device))


def bench_settings(model: Model, clients: int, *, device: torch.device, client: ClientSettings) -> Experiment:
    """Return an experiment on data given in Python that is never evaluated, with nine stragglers in ten clients.

    Args:
        model: What the clients train.
        clients: How many clients are registered.
        device: Where to compute.
        client: The clients' settings.
    """
    return Experiment(
        name="bench",
        rounds=_NEVER,
        device=str(device),
        data=DataSettings(name="tensors", clients=clients),
        model=model,
        client=client,
        devices=UniformDepthDevices(),
        evaluate=EvaluateSettings(every=_NEVER),
    )


class RoundBench:
    """A simulation on random data without evaluation, and the work that it is compared with.

    Nine in ten clients are stragglers, as in the paper.

    Args:
        subject: What a round computes.
        device: Where everything is computed.
        engine: What trains the clients.
        method: salf by default.

    Attributes:
        simulation: The simulation.
        state: The server's state before the next round.
        tasks: What the clients do in the first round.
        model: The model that the centralised pass trains.
        device: Where everything is computed.
        index: The places of the examples of all clients in the first round, client by client.
        inputs: All inputs, shape (examples, …).
        labels: All labels, shape (examples,).
        at_hand: The inputs of the first round, gathered.
        labels_at_hand: Their labels.
    """

    def __init__(
        self, subject: Subject, device: torch.device = CPU, *, engine: EngineName = "fused", method: Salf | None = None
    ) -> None:
        count = max(2000, subject.clients * _BATCH)
        draw = torch.Generator().manual_seed(0)
        inputs, labels = torch.randn(count, *subject.shape, generator=draw), torch.arange(count) % _CLASSES
        dataset = Dataset.from_tensors(inputs, labels, inputs[:_BATCH], labels[:_BATCH])
        client = ClientSettings(batch_size=_BATCH)
        settings = bench_settings(subject.model, subject.clients, device=device, client=client)
        self.simulation = Simulation(replace(settings, engine=engine, method=method or Salf()), dataset=dataset)
        self.state: ServerState = self.simulation.initial_state()
        self.tasks: Tasks = self.simulation.tasks(self.state)
        self.model = build(subject.model, dataset.input_shape, dataset.num_classes, seed=0).to(device).train()
        self.device, self.index = device, torch.from_numpy(self.tasks.batches.ravel()).to(device)
        self.inputs, self.labels = inputs.to(device), labels.to(device)
        self.at_hand, self.labels_at_hand = self.inputs[self.index], self.labels[self.index]

    def play(self) -> None:
        """Play a round."""
        self.state, _ = self.simulation.play(self.state)

    def train(self) -> None:
        """Train the clients of the first round, and nothing else."""
        with self.simulation.federation.suitable_threads():
            self.train_cohort()

    def train_cohort(self) -> None:
        """Do as `train`, on as many threads as torch has."""
        running = Aggregation(self.state.weights, self.simulation.layers, Contributors())
        self.simulation.federation.engine.train_cohort(self.state.weights, self.tasks, running)

    def centralised(self) -> None:
        """Gather the examples of all clients of a round, and compute one gradient from them."""
        with self.simulation.federation.suitable_threads():
            # The engine also reuses memory here; fresh memory takes several times as long.
            torch.index_select(self.inputs, 0, self.index, out=self.at_hand)
            torch.index_select(self.labels, 0, self.index, out=self.labels_at_hand)
            self._train_centrally()

    def centralised_at_hand(self) -> None:
        """Do as `centralised`, on examples that were gathered before."""
        with self.simulation.federation.suitable_threads():
            self._train_centrally()

    def _train_centrally(self) -> None:
        """Compute one gradient from all gathered examples."""
        self.model.zero_grad(set_to_none=True)
        backward_pass(self.model, self.at_hand, self.labels_at_hand)

    def copies(self) -> None:
        """Train a copy of the model for each client, as simulators commonly do."""
        weights = {name: torch.zeros_like(value) for name, value in self.model.named_parameters()}
        for own in self.tasks.batches:
            twin = copy.deepcopy(self.model)
            optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
            index = torch.from_numpy(own[0]).to(self.device)
            backward_pass(twin, self.inputs[index], self.labels[index])
            optimizer.step()
            with torch.no_grad():
                for name, value in twin.named_parameters():
                    weights[name] += value / len(self.tasks.batches)


def backward_pass(model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    """Compute the gradients of the mean loss of a batch."""
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()  # type: ignore[no-untyped-call]  # torch - its `backward` is untyped


def _fused_ratio(device: torch.device, subject: Subject, seconds: float) -> Figure:
    """Compare the training of a round's clients with one centralised pass.

    Args:
        device: Where both compute.
        subject: What a round computes.
        seconds: About how long to measure.
    """
    bench = RoundBench(subject, device)
    return _against_centralised(bench, bench.train, 1, seconds)


def _round_ratio(device: torch.device, subject: Subject, seconds: float) -> Figure:
    """Compare as many rounds as are drawn at once with as many passes, so the drawing counts.

    Args:
        device: Where both compute.
        subject: What a round computes.
        seconds: About how long to measure.
    """
    bench = RoundBench(subject, device)
    return _against_centralised(bench, bench.play, bench.simulation.sampler.rounds_ahead, seconds)


def _against_centralised(bench: RoundBench, act: Callable[[], None], times: int, seconds: float) -> Figure:
    """Compare with the centralised pass; the details also compare with one whose examples are gathered before.

    Args:
        bench: What the pass trains on.
        act: What to compare.
        times: How many calls of `act`, and passes, make one measurement.
        seconds: About how long to measure.
    """

    def repeat(function: Callable[[], None]) -> None:
        for _ in range(times):
            function()

    figure, at_hand = (
        time_in_turn(partial(repeat, act), partial(repeat, centralised), seconds / 2, bench.device)
        for centralised in (bench.centralised, bench.centralised_at_hand)
    )
    return replace(figure, details={**figure.details, "examples_at_hand": at_hand.value})


def _copies_ratio(device: torch.device, seconds: float) -> Figure:
    """Compare a loop over copies of the model with the fused engine."""
    bench = RoundBench(_MLP, device)
    with bench.simulation.federation.suitable_threads():
        return time_in_turn(bench.copies, bench.train, seconds, device)


def _growth_exponent(device: torch.device, seconds: float) -> Figure:
    """Fit log time against log clients, with the median of interleaved rounds for each number of clients."""
    plays: list[Callable[[], None]] = [RoundBench(replace(_MLP, clients=clients), device).play for clients in _GROWTH]
    for play in plays:
        play()
    passes = max(5, math.ceil(seconds / sum(timed(play, device=device) for play in plays)))
    times = [[timed(play, device=device) for play in plays] for _ in range(passes)]
    medians: list[float] = np.median(times, axis=0).tolist()
    exponent, _ = np.polyfit(np.log(_GROWTH), np.log(medians), 1)
    return Figure(float(exponent), {"clients": list(_GROWTH), "seconds": medians, "passes": passes})
