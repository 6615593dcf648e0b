"""What the clients of a run train, on what and how."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from salf.layers import Layers
from salf.values import STRICT, LayerCosts

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
