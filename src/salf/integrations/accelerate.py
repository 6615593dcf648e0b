"""A deadline for a loop that Accelerate prepares."""

import time
from collections.abc import Callable

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from salf import client
from salf.client import Deadline
from salf.errors import check_type
from salf.layers import Layers


def deadline(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer | None = None,
    seconds: float | None = None,
    *,
    layers: Layers | None = None,
    clock: Callable[[], float] = time.monotonic,
    before_step: Callable[[], object] | None = None,
) -> Deadline:
    """Give a loop over prepared objects a deadline, as `salf.deadline` does.

    The number of passes per step is the accelerator's, and so is the scaler of mixed precision.

    Args:
        accelerator: What prepared the objects.
        model: The prepared model, on one process.
        optimizer: The prepared optimizer; not needed by a loop over `work.batches(loader)` that does not accumulate.
        seconds: Time to the deadline.
        layers: The layers, as in `salf.deadline`.
        clock: Returns seconds.
        before_step: As in `salf.deadline`; for clipping, pass `accelerator.clip_grad_norm_` in a lambda.

    Raises:
        InvalidSetting: An argument has a wrong type.
        UnsuitableModel: The model cannot be trained under a deadline; see `salf.deadline`.

    >>> import torch
    >>> accelerator = Accelerator(cpu=True)
    >>> model = nn.Linear(2, 1)
    >>> model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> with deadline(accelerator, model, optimizer, seconds=60) as work:
    ...     accelerator.backward(model(torch.ones(4, 2)).sum())
    ...     optimizer.step()
    >>> work.steps
    1
    """
    check_type("accelerator", accelerator, Accelerator, "an accelerate.Accelerator")
    passes = accelerator.gradient_accumulation_steps
    return client.deadline(
        model,
        optimizer,
        seconds,
        layers=layers,
        clock=clock,
        accumulate=passes if passes > 1 else None,
        before_step=before_step,
    )
