"""Small models, and rounds of them, that are computed on the CPU and on a CUDA device."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from engine_cases import training_of
from torch import Tensor, nn

from salf.aggregation.aggregation import Aggregated, Aggregation
from salf.aggregation.rules import Rule
from salf.data import Dataset
from salf.engines import Engine, FusedEngine, OptimizerSettings, PlainEngine, StackedEngine, Tasks, Training
from salf.engines.accelerator import CPU, find_device
from salf.layers.find import Layers, find_layers
from salf.models import Cnn, Mlp, Model, ResidualNet, Transformer, build

SHAPE, CLASSES, EXAMPLES = (1, 8, 8), 4, 96
MODELS: dict[str, Model] = {
    "mlp": Mlp(hidden=(16, 12)),
    "cnn": Cnn(channels=(4, 6), kernel=3, padding=1, hidden=(12,)),
    "residual": ResidualNet(width=4, blocks=(1, 1)),
    "transformer": Transformer(width=8, depth=1, heads=2, patch=4),
}
ENGINES: dict[str, Any] = {"plain": PlainEngine, "fused": FusedEngine, "stacked": StackedEngine}
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Said by torch of the thread in which it runs a first backward pass, whoever asks for that.
QUIET = pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")


def cuda() -> torch.device:
    return find_device("cuda")


def full_precision() -> Iterator[None]:
    """Compute in all digits of single precision."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    yield
    products.allow_tf32, convolutions.allow_tf32 = before


class Subject(NamedTuple):
    """A model with its data and the global weights, on one device."""

    model: nn.Module
    layers: Layers
    inputs: Tensor
    labels: Tensor
    weights: Mapping[str, Tensor]

    def training(self, how: OptimizerSettings) -> Training:
        return training_of(self.model, self.layers, self.inputs, self.labels, how)

    def engine(self, kind: str, how: OptimizerSettings, **limits: int) -> Engine:
        engine: Engine = ENGINES[kind](self.training(how), **limits)
        return engine


def pictures(examples: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    """Noise around one picture per class."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, *SHAPE, generator=draw)
    labels = torch.arange(examples) % CLASSES
    return centres[labels] + torch.randn(examples, *SHAPE, generator=draw), labels


def small_data(device: torch.device = CPU) -> Dataset:
    inputs, labels = (values.to(device) for values in pictures(EXAMPLES + 40))
    return Dataset.from_tensors(inputs[40:], labels[40:], inputs[:40], labels[:40])


def subject(name: str, device: torch.device, *, double: bool = False) -> Subject:
    """One of the models on a device, with the same numbers on each."""
    model = build(MODELS[name], SHAPE, CLASSES, seed=3)
    draw = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for parameter in model.parameters():  # away from zero, where nothing but gradients would be compared
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    inputs, labels = pictures()
    if double:
        model, inputs = model.double(), inputs.double()
    layers = find_layers(model, inputs[:2])
    there = model.to(device)
    weights = {key: value.detach().clone() for key, value in there.state_dict().items()}
    return Subject(there, layers, inputs.to(device), labels.to(device), weights)


def tasks_for(layers: Layers, local_steps: int = 1, *, full: bool = False) -> Tasks:
    """Clients of every depth, the deepest in the middle, with batches of three to five examples, or of five each."""
    done = np.concatenate([np.arange(len(layers) * local_steps + 1), np.arange(len(layers) * local_steps)])
    steps = (done[:, None] + np.arange(len(layers))) // len(layers)
    draw = np.random.default_rng(0)
    sizes = np.full(len(done), 5) if full else draw.integers(3, 6, size=len(done))
    batches = draw.integers(EXAMPLES, size=(len(done), local_steps, 5))
    batches = np.where(np.arange(5) < sizes[:, None, None], batches, -1)
    return Tasks(np.arange(len(done)), steps, batches, draw.integers(5, 50, size=len(done)), 0, 1, full=full)


def play(
    kind: str,
    own: Subject,
    rule: Rule,
    how: OptimizerSettings,
    local_steps: int = 1,
    *,
    full: bool = False,
    **limits: int,
) -> Aggregated:
    """Let an engine compute a round, and aggregate it."""
    tasks = tasks_for(own.layers, local_steps, full=full)
    reach = np.random.default_rng(1).uniform(0.2, 1.0, size=(len(tasks.clients), len(own.layers)))
    running = Aggregation(own.weights, own.layers, rule, reach=reach, clients=tasks.clients.tolist())
    accepted = own.engine(kind, how, **limits).train_cohort(own.weights, tasks, running)
    assert accepted.all()
    return running.finish(len(tasks.clients))


def assert_states_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """Compare two states, wherever they are; tensors by their difference relative to the largest value."""
    assert found.keys() == expected.keys()
    wrong = {}
    for name, right in expected.items():
        assert found[name].dtype == right.dtype
        difference = float((found[name].cpu().double() - right.cpu().double()).abs().max())
        allowed = tolerance * float(right.double().abs().max()) if right.is_floating_point() else 0.0
        if not difference <= allowed:
            wrong[name] = (difference, allowed)
    assert not wrong


def changes(after: Mapping[str, Tensor], before: Mapping[str, Tensor], layers: Layers) -> dict[str, Tensor]:
    """Return by how much the parameters of the layers have moved."""
    return {name: (after[name] - before[name]).cpu() for layer in layers for name in layer.parameters}
