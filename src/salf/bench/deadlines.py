"""The cost of a real deadline for a loop that it never interrupts, and its punctuality."""

from functools import cache, partial
from statistics import fmean, median

import torch
from torch import Tensor, nn

from salf.bench.case import Case, Figure, time_in_turn
from salf.bench.rounds import backward_pass
from salf.client import deadline
from salf.layers import Layers, find_layers
from salf.models import Vgg, build

_ROWS = 16
_STEPS = 20
_PASSES = 16
_LATE = 1.05
_BLOCKS, _FEWEST_BLOCKS = 100, 20


def deadline_cases(device: torch.device) -> list[Case]:
    """Return the cases of a deadline's cost and punctuality, with the model on a device."""
    subject = f"(VGG11, batch {_ROWS})"
    cost = f"a loop of {_STEPS} steps under a deadline it never meets, against the loop alone {subject}"
    punctual = f"blocks that end by {_LATE} × their deadline, 10 to 90 % of a step {subject}"
    return [
        Case("deadline/cost", cost, 1.02, "≤", "×", partial(_cost, device)),
        Case("deadline/on-time", punctual, 95, "≥", "%", partial(_punctuality, device, 1)),
        Case(
            "deadline/passes",
            f"the same with {_PASSES} passes per step",
            95,
            "≥",
            "%",
            partial(_punctuality, device, _PASSES),
        ),
    ]


class DeadlineLoop:
    """A training loop on VGG11, with and without a deadline.

    Args:
        device: Where the model is trained.

    Attributes:
        model: The network, which is trained already for a few steps.
        optimizer: SGD with momentum.
        inputs: One batch of random images, shape (16, 3, 32, 32).
        labels: Their random classes, shape (16,).
        layers: The network's layers.
    """

    def __init__(self, device: torch.device) -> None:
        self.model: nn.Module = build(Vgg(), (3, 32, 32), 10, seed=0).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.inputs: Tensor = torch.randn(_ROWS, 3, 32, 32).to(device)
        self.labels: Tensor = torch.randint(0, 10, (_ROWS,)).to(device)
        self.layers: Layers = find_layers(self.model, self.inputs)
        self.train(3)

    def train(self, steps: int, passes: int = 1) -> None:
        """Train for some steps, each of so many passes over a part of the batch."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            for inputs, labels in zip(self.inputs.chunk(passes), self.labels.chunk(passes), strict=True):
                backward_pass(self.model, inputs, labels)
            self.optimizer.step()

    def block(self, steps: int, seconds: float, passes: int = 1) -> tuple[float, int]:
        """Train under a deadline, and make the update.

        Args:
            steps: How many steps to try.
            seconds: The deadline.
            passes: How many passes a step has.

        Returns:
            How many seconds training took, and how many layers the update has.
        """
        with deadline(self.model, self.optimizer, seconds, layers=self.layers) as work:
            self.train(steps, passes)
        work.update(_ROWS)
        return work.seconds, work.depth


_loop = cache(DeadlineLoop)  # both cases share the loop on a device


def _cost(device: torch.device, seconds: float) -> Figure:
    """Compare a loop under a deadline that it never meets with the loop alone."""
    loop = _loop(device)
    return time_in_turn(lambda: loop.block(_STEPS, 1000.0), lambda: loop.train(_STEPS), seconds, device)


def _punctuality(device: torch.device, passes: int, seconds: float) -> Figure:
    """Try nine deadlines, with equally many blocks each.

    Args:
        device: Where the model is trained.
        passes: How many passes a step has.
        seconds: About how long to measure; 20 to 100 blocks for each deadline.

    Returns:
        The worst share of punctual blocks, in per cent; for each deadline, the share and the mean depth of the update.
    """
    loop = _loop(device)
    step_seconds = median(loop.block(1, 1000.0, passes)[0] for _ in range(4))
    count = min(_BLOCKS, max(_FEWEST_BLOCKS, round(seconds / (9 * 0.5 * step_seconds))))
    shares, depths = {}, {}
    for tenth in range(9, 0, -1):
        limit = step_seconds * tenth / 10
        results = [loop.block(3, limit, passes) for _ in range(count)]
        shares[f"{tenth}0 %"] = fmean(seconds_taken / limit <= _LATE for seconds_taken, _ in results)
        depths[f"{tenth}0 %"] = fmean(depth for _, depth in results)
    return Figure(100 * min(shares.values()), {"share": shares, "depth": depths, "blocks": count})
