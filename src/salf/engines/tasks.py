"""What an engine computes: what the clients train, the tasks of a round's clients, and the protocol of all engines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from salf import seeds
from salf.aggregation import Aggregated, Aggregation, Weights
from salf.errors import InvalidUpdate
from salf.layers import Layers
from salf.update import Update
from salf.values import STRICT, Ints, LayerCosts

# How errors of the fast engines end: what to set `engine` to.
REMEDY = "; choose 'auto' or 'plain'"
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy_of(client: int) -> Loss:  # noqa: ARG001 - the same loss for every client
    """Return the cross-entropy, which every client minimizes by default."""
    return nn.functional.cross_entropy


@validated(frozen=True, kw_only=True, config=STRICT)
class OptimizerSettings:
    """How a client optimizes: one of the optimizers of `torch.optim`, which starts without state in every round.

    Attributes:
        optimizer: Which one.
        lr: The step size.
        momentum: The momentum of "sgd", from 0 to below 1.
        weight_decay: The decay λ of the weights, as `torch.optim` defines it for each optimizer.

    >>> OptimizerSettings(lr=0.5, momentum=0.9).build([nn.Parameter(torch.zeros(1))]).defaults["momentum"]
    0.9
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0, le=1e30)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=1e30)] = 0.0

    def __post_init__(self) -> None:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is an option of sgd, not of {self.optimizer}; set it to 0")

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer over `parameters`."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Training:
    """What the clients of a run train, on what and how: all that an engine needs to be built.

    Attributes:
        model: The model; engines copy it.
        layers: Its layers, input to output.
        costs: What one example costs in each layer.
        inputs: The training examples, shape (examples, …), on the device that computes.
        labels: Their classes, shape (examples,).
        optimizer: How a client optimizes.
        batch_size: The largest batch that occurs.
        local_steps: How many optimizer steps a client takes in a round.
        loss_of: Gives, by a client's number, the loss that it minimizes; only the plain engine supports another than
            the cross-entropy.
    """

    model: nn.Module
    layers: Layers
    costs: LayerCosts
    inputs: Tensor
    labels: Tensor
    optimizer: OptimizerSettings
    batch_size: int
    local_steps: int
    loss_of: Callable[[int], Loss] = cross_entropy_of


@dataclass(frozen=True)
class ClientTask:
    """One client's part of a round.

    Attributes:
        client: The client's number.
        steps: How many optimizer steps each layer takes, shape (layers,), input to output; the last may be partial.
        batches: The indices of the training examples of each step, shape (local steps, batch).
        num_examples: The size of the client's data set.
        seed: The seed of what the model itself draws, such as dropout.
        proximal: μ of the term μ/2 ‖w − w_t‖² in the loss.
    """

    client: int
    steps: Ints
    batches: Ints
    num_examples: int
    seed: int
    proximal: float = 0.0


@dataclass(frozen=True)
class Tasks:
    """What the clients of one round compute; a row of each array belongs to one client.

    Attributes:
        clients: The clients' numbers, shape (clients,).
        steps: As in `ClientTask`, shape (clients, layers).
        batches: Indices of training examples, shape (clients, local steps, batch); −1 fills the batches of a client
            that has fewer examples.
        num_examples: The sizes of the clients' data sets, shape (clients,).
        seed: With `round` and a client's number, the address of what the model draws.
        round: The number of the round.
        proximal: As in `ClientTask`.
        full: Whether no batch contains −1.
    """

    clients: Ints
    steps: Ints
    batches: Ints
    num_examples: Ints
    seed: int
    round: int
    proximal: float = 0.0
    full: bool = False

    def __iter__(self) -> Iterator[ClientTask]:
        """Yield each client's task."""
        return map(self.task, range(len(self.clients)))

    def select(self, places: Ints) -> "Tasks":
        """Return the tasks of the clients in some of the rows."""
        arrays = ("clients", "steps", "batches", "num_examples")
        return replace(self, **{name: getattr(self, name)[places] for name in arrays})

    def batch_size(self, place: int) -> int:
        """Return the number of examples in each batch of the client in one row."""
        return int((self.batches[place, 0] >= 0).sum()) if self.batches.shape[1] else 0

    def task(self, place: int) -> ClientTask:
        """Return the task of the client in one row."""
        own, client = self.batches[place], int(self.clients[place])
        batches, num_examples = own[:, own[0] >= 0], int(self.num_examples[place])
        seed = seeds.integer(self.seed, "model", self.round, client)
        return ClientTask(client, self.steps[place], batches, num_examples, seed, self.proximal)


class Engine(Protocol):
    """Computes the updates of a round's clients.

    Attributes:
        name: The name in settings and records.
        at_once: Whether it computes many clients in one operation.
    """

    name: str
    at_once: bool

    @property
    def one_by_one(self) -> "Engine | None":
        """The engine that checks each client's update, for one that only computes their sum."""
        ...

    def train_cohort(self, weights: Weights, tasks: Tasks, running: Aggregation) -> npt.NDArray[np.bool_]:
        """Let the clients train, and add what they send to a round's aggregation.

        Args:
            weights: The global state dict from which every client starts.
            tasks: What the clients compute.
            running: The round's aggregation.

        Returns:
            Which clients' updates were accepted, shape (clients,).
        """
        ...


def train_round(
    engine: Engine, weights: Weights, tasks: Tasks, begin: Callable[[], Aggregation]
) -> tuple[Aggregated, npt.NDArray[np.bool_]]:
    """Let the clients of a round train, and aggregate what they send.

    If a layer overflows in an engine that does not check each update, the round is computed again client by client, to
    reject only the updates that are not finite.

    Args:
        engine: Computes the round.
        weights: The global state dict from which every client starts.
        tasks: What the clients compute.
        begin: Begins the round's aggregation; called again if the round is computed again.

    Returns:
        The new state, and which clients' updates were accepted, shape (clients,).
    """
    running = begin()
    accepted = engine.train_cohort(weights, tasks, running)
    result = running.finish(len(tasks.clients))
    if result.overflowed and engine.one_by_one is not None and not running.sums.needs_individual_updates:
        return train_round(engine.one_by_one, weights, tasks, begin)
    return result, accepted


def add_each(running: Aggregation, tasks: Tasks, update_of: Callable[[int], Update | None]) -> npt.NDArray[np.bool_]:
    """Add each client's update to an aggregation, in the order of the clients' numbers.

    Args:
        running: The round's aggregation.
        tasks: What the clients compute.
        update_of: Gives a client's update by its row in the tasks; None if it finished no layer.

    Returns:
        Which clients' updates were accepted, shape (clients,).
    """
    accepted = np.ones(len(tasks.clients), dtype=np.bool_)
    for position in np.argsort(tasks.clients, kind="stable").tolist():
        update = update_of(position) or Update({}, {}, int(tasks.num_examples[position]))
        try:
            running.add(update, position)
        except InvalidUpdate:
            accepted[position] = False
    return accepted


def update_of(
    layers: Layers,
    steps: Ints,
    batch_size: int,
    num_examples: int,
    delta_of: Callable[[str], Tensor],
    buffer_of: Callable[[str], Tensor],
) -> Update:
    """Return a client's update: the layers that took a step.

    Args:
        layers: The model's layers.
        steps: How many steps each of them took, shape (layers,).
        batch_size: The number of examples of a step.
        num_examples: The size of the client's data set.
        delta_of: Gives a parameter's change by its name.
        buffer_of: Gives a buffer's value by its name.
    """
    sent = [(layer, int(count)) for layer, count in zip(layers, steps, strict=True) if count]
    deltas = {name: delta_of(name) for layer, _ in sent for name in layer.parameters}
    buffers = {name: buffer_of(name) for layer, _ in sent for name in layer.buffers}
    passes = {layer.name: count for layer, count in sent}
    examples = {name: count * batch_size for name, count in passes.items()}
    return Update(deltas, passes, num_examples, buffers, passes, examples)
