"""What an engine is asked to compute, and what every engine is."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from salf import seeds
from salf.aggregation import Aggregated, Aggregation
from salf.errors import InvalidUpdate
from salf.update import Update
from salf.values import Ints


@dataclass(frozen=True)
class ClientTask:
    """One client's part of a round.

    `steps`, of shape (layers,), counts the optimizer steps each layer gets, input to output; the last one may be
    partial. `batches` holds the indices of the training examples of each step, shape (local steps, batch). `seed`
    governs what the model itself draws, such as dropout. `proximal` is μ of the term μ/2 ‖w − w_t‖² in the loss.
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

    `clients`, of shape (clients,), are their numbers, `steps`, (clients, layers), as in `ClientTask`. `batches`, of
    shape (clients, local steps, batch), holds indices of training examples, and −1 at the end of the batches of a
    client that has fewer; `full` says that none has. `num_examples`, (clients,), are the sizes of their data sets.
    `seed` and `round` are the address of what the model draws. `proximal` is as in `ClientTask`.
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
        return replace(
            self,
            clients=self.clients[places],
            steps=self.steps[places],
            batches=self.batches[places],
            num_examples=self.num_examples[places],
        )

    def task(self, place: int) -> ClientTask:
        """Return the task of the client in one row."""
        own, client = self.batches[place], int(self.clients[place])
        return ClientTask(
            client,
            self.steps[place],
            own[:, own[0] >= 0],
            int(self.num_examples[place]),
            seeds.integer(self.seed, "model", self.round, client),
            self.proximal,
        )


class Engine(Protocol):
    """Computes what the clients of a round convey; `at_once` if it does so for many of them in one operation."""

    name: str
    at_once: bool

    @property
    def one_by_one(self) -> "Engine | None":
        """The engine that looks at each client's update, of one that adds them up by itself."""
        ...

    def train_cohort(self, weights: Mapping[str, Tensor], tasks: Tasks, running: Aggregation) -> npt.NDArray[np.bool_]:
        """Let the clients train from the global `weights`, and add what they convey to a round's aggregation.

        Return whose updates were accepted, shape (clients,).
        """
        ...


def train_round(
    engine: Engine,
    weights: Mapping[str, Tensor],
    tasks: Tasks,
    begin: Callable[[], Aggregation],
) -> tuple[Aggregated, npt.NDArray[np.bool_]]:
    """Let the clients train from the global `weights`, and aggregate what they convey as `begin` begins it.

    Return the new state, and whose updates were accepted, shape (clients,). Where a layer does not stay finite, though
    nobody has looked at each update, the round is repeated client by client, to find out which is to blame.
    """
    running = begin()
    accepted = engine.train_cohort(weights, tasks, running)
    result = running.finish(len(tasks.clients))
    if result.overflowed and engine.one_by_one is not None and not running.sums.needs_individual_updates:
        return train_round(engine.one_by_one, weights, tasks, begin)
    return result, accepted


def add_each(running: Aggregation, tasks: Tasks, updates: dict[int, Update]) -> npt.NDArray[np.bool_]:
    """Add each client's update, given by its row in the tasks; return whose were accepted, shape (clients,).

    Who has none conveys nothing. They are added in the order of their numbers, whatever the order of the rows, and used
    up: what an aggregation remembers of them never lies in memory twice.
    """
    accepted = np.ones(len(tasks.clients), dtype=np.bool_)
    for position in np.argsort(tasks.clients, kind="stable").tolist():
        idle = Update({}, {}, int(tasks.num_examples[position]))
        try:
            running.add(updates.pop(position, idle), position)
        except InvalidUpdate:
            accepted[position] = False
    return accepted


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class OptimizerSettings:
    """How a client optimises: one of `torch.optim`'s optimizers, made anew in every round."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0, le=1e30)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=1e30)] = 0.0

    def __post_init__(self) -> None:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is an option of sgd, not of {self.optimizer}")

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer over `parameters`."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, self.lr, weight_decay=self.weight_decay)
