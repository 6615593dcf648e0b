"""The work of every peer, from the file that `benchmarks/peers.py` writes.

It needs only numpy and torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

LEARNING_RATE = 0.1
_HIDDEN = (32, 16)


@dataclass(frozen=True)
class Outcome:
    """Mean cross-entropy and accuracy of a model on all training data."""

    loss: float
    accuracy: float
    detail: str = ""


@dataclass(frozen=True)
class Workload:
    """Training data and the examples of each client in each round.

    Attributes:
        path: The file.
        inputs: Shape (examples, *input shape).
        labels: Shape (examples,).
        batches: Indices of examples, shape (rounds, clients, batch).
    """

    path: Path
    inputs: Tensor
    labels: Tensor
    batches: Tensor

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the arrays of an .npz file."""
        with np.load(path) as arrays:
            return cls(path, *(torch.from_numpy(arrays[name]) for name in ("inputs", "labels", "batches")))

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return self.batches.shape[0]

    @property
    def clients(self) -> int:
        """Clients per round."""
        return self.batches.shape[1]

    @property
    def batch_size(self) -> int:
        """Examples of a client in a round."""
        return self.batches.shape[2]

    def batch(self, round: int, client: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a client in a round, both counted from 0."""
        rows = self.batches[round, client]
        return self.inputs[rows], self.labels[rows]

    def network(self) -> nn.Sequential:
        """Build the network with fixed weights."""
        torch.manual_seed(0)
        narrow, narrower = _HIDDEN
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(self.inputs[0].numel(), narrow),
            nn.ReLU(),
            nn.Linear(narrow, narrower),
            nn.ReLU(),
            nn.Linear(narrower, 1 + int(self.labels.max())),
        )

    @torch.inference_mode()
    def test(self, model: nn.Module) -> Outcome:
        """Return loss and accuracy of a model on the training data."""
        outputs = model(self.inputs)
        loss = nn.functional.cross_entropy(outputs, self.labels)
        return Outcome(float(loss), float((outputs.argmax(dim=1) == self.labels).double().mean()))


def local_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    """Take one optimizer step on a batch: the work of a client."""
    inputs, labels = batch
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
