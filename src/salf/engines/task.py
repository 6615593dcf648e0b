"""What an engine is asked to compute."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import nn


@dataclass(frozen=True)
class ClientTask:
    """One client's part of a round.

    `steps`, of shape (layers,), counts the optimizer steps each layer gets, input to output; the last one may be
    partial. `batches` holds the indices of the training examples of each step, shape (local steps, batch). `seed`
    governs what the model itself draws, such as dropout.
    """

    client: int
    steps: npt.NDArray[np.int64]
    batches: npt.NDArray[np.int64]
    num_examples: int
    seed: int


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Optimisation:
    """How a client optimises: one of `torch.optim`'s optimizers, made anew in every round."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is an option of sgd, not of {self.optimizer}")

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer over `parameters`."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, self.lr, weight_decay=self.weight_decay)
