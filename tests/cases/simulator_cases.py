"""Tiny experiments, and a client that trains in the most naive way."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from salf.data import Dataset
from salf.devices import Cohort, Workload
from salf.engines import OptimizerSettings
from salf.experiment.experiment import Experiment
from salf.layers.find import Layers
from salf.models import Cnn, Mlp, Model, ResidualNet, Transformer, build
from salf.records.rounds import RoundRecord
from salf.simulation.server_state import ServerState
from salf.simulation.simulator import Simulation
from salf.update import Update
from salf.values import LayerCosts

torch.set_num_threads(1)  # for tensors as small as these, several threads take many times as long

SHAPE, CLASSES = (1, 8, 8), 4
MODELS: dict[str, Model] = {
    "mlp": Mlp(hidden=(8, 6)),
    "cnn": Cnn(channels=(3, 4), kernel=3, padding=1, hidden=(6,)),
    "residual": ResidualNet(width=3, blocks=(1, 1)),
    "transformer": Transformer(width=8, depth=1, heads=2, patch=4),
}
RESIDUAL = {"model.name": "residual", "model.width": 3, "model.blocks": [1, 1]}
NORMALIZED = {"model.name": "factory", "model.call": "simulator_cases:normalized_mlp"}
RULES = ("corrected", "contributors", "everyone", "inverse-probability", "memory")


def normalized_mlp() -> nn.Module:
    """A small model with batch normalization."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, CLASSES)
    )


def small_data(examples: int = 96, seed: int = 0) -> Dataset:
    """Noise around one picture per class."""
    draw = torch.Generator().manual_seed(seed)
    pictures = torch.randn(CLASSES, *SHAPE, generator=draw)
    labels = torch.arange(examples + 20) % CLASSES
    inputs = pictures[labels] + torch.randn(examples + 20, *SHAPE, generator=draw)
    return Dataset.from_tensors(inputs[20:], labels[20:], inputs[:20], labels[:20])


def small_experiment(settings: Mapping[str, object] | None = None) -> Experiment:
    """Six clients with a small MLP on data given in Python, and `settings` by their dotted names."""
    dotted = {
        "rounds": 3,
        "seed": 5,
        "data.name": "tensors",
        "data.clients": 6,
        "model.name": "mlp",
        "client.batch_size": 4,
        "evaluate.every": 1000,
        **(settings or {}),
    }
    if dotted["model.name"] == "mlp":
        dotted.setdefault("model.hidden", [8, 6])
    nested: dict[str, object] = {}
    for key, value in dotted.items():
        section, _, name = key.rpartition(".")
        place = nested.setdefault(section, {}) if section else nested
        assert isinstance(place, dict)
        place[name] = value
    return Experiment.parse(nested, "the test")


def play(
    settings: Mapping[str, object], *, model: nn.Module | None = None, dataset: Dataset | None = None
) -> tuple[ServerState, list[RoundRecord]]:
    """Play a small experiment to its end."""
    simulation = Simulation(small_experiment(settings), model=model, dataset=dataset or small_data())
    played = list(simulation.run())
    return played[-1][0], [record for _, record in played]


def same_weights(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Say whether two states agree to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def built(name: str) -> nn.Module:
    """One of the small models."""
    return build(MODELS[name], SHAPE, CLASSES, seed=3)


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state dict."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def step_counts(layers: int, whole: int, depth: int) -> list[int]:
    """Steps per layer of a client that took `whole` steps and a partial one of `depth` layers."""
    return [whole + (index >= layers - depth) for index in range(layers)]


def train_naively(
    model: nn.Module,
    layers: Layers,
    weights: Mapping[str, Tensor],
    steps: Sequence[int],
    batches: Sequence[tuple[Tensor, Tensor]],
    optimisation: OptimizerSettings,
    seed: int,
) -> Update:
    """What a client conveys that backpropagates through everything, and of each layer keeps the step it got to.

    Only the last step is partial, so what it does to a layer that it does not reach cannot matter to the others.
    """
    twin = copy.deepcopy(model).train()
    twin.load_state_dict(weights)
    optimizer = optimizer_for(twin, optimisation)
    after = [values_of(twin)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inputs, labels in batches[: max(steps)]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(twin(inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            after.append(values_of(twin))
    conveyed = [(layer, count) for layer, count in zip(layers, steps, strict=True) if count]
    return Update(
        {name: after[count][name] - weights[name] for layer, count in conveyed for name in layer.parameters},
        {layer.name: count for layer, count in conveyed},
        num_examples=1,
        buffers={name: after[count][name] for layer, count in conveyed for name in layer.buffers},
    )


def optimizer_for(model: nn.Module, how: OptimizerSettings) -> torch.optim.Optimizer:
    if how.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=how.lr, momentum=how.momentum, weight_decay=how.weight_decay)
    if how.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=how.lr, weight_decay=how.weight_decay)
    return torch.optim.AdamW(model.parameters(), lr=how.lr, weight_decay=how.weight_decay)


def everyone(population: int, round: int = 1, seed: int = 0) -> Cohort:
    """A cohort of the whole population."""
    return Cohort(np.arange(population), population, round, seed)


def workload(layers: int = 4, local_steps: int = 1) -> Workload:
    """A job with layers of unequal cost: 2, 3, 4, … operations backward, 100, 200, … bytes."""
    backward = tuple(float(index + 2) for index in range(layers))
    return Workload(
        LayerCosts(sum(backward) / 2, backward, tuple(100 * (index + 1) for index in range(layers))), local_steps
    )
