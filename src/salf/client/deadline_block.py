"""The entry point of a client: give a training loop a deadline."""

import math
import time
from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from salf.client.final_step import Scaler
from salf.client.loop_watcher import Deadline
from salf.client.suitability import check_optimizer, check_suitable
from salf.client.time_budget import Stopwatch
from salf.errors import InvalidSetting, check_positive, check_type
from salf.layers import Layers, find_layers, unwrapped


def deadline(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    seconds: float | None = None,
    *,
    layers: Layers | None = None,
    clock: Callable[[], float] = time.monotonic,
    upload_bytes_per_second: float | None = None,
    scaler: Scaler | None = None,
    accumulate: int | None = None,
    before_step: Callable[[], object] | None = None,
) -> "Deadline":
    """Give the training loop in a `with` block a deadline, and keep what it finishes.

    The block ends the loop at its deadline. Finished steps stay. If a step is interrupted, it is taken over the layers
    that have a gradient: with gradient accumulation, from the passes that are finished. The gradient of a layer that j
    of k passes have reached is multiplied by k / j. The block discards all other gradients, restores the buffers of the
    other layers, and removes its hooks.

    There are two ways to end the loop:

    * The loop stays as it is. The block leaves it by an exception of its own, wherever it is, and takes the last step
      itself. That step skips the loop's code between backward pass and step, such as clipping, unless it is in
      `before_step`; and the code after the step, such as a scheduler's step.
    * The loop ends itself: give it `work.batches(loader)`. Its function returns as usual, and its own code runs for the
      last step. `optimizer` is then not needed, except with gradient accumulation.

    Other exceptions of the loop pass through unchanged.

    The block checks the time whenever a module that owns parameters is called, and whenever the gradient of a layer is
    ready. It cannot interrupt a single layer, or a data loader. Passes of a compiled model, of
    `DistributedDataParallel`, and of private training with Opacus are not interrupted: whole steps are kept.

    The first block on a model knows no durations, so it may pass its deadline by the layer in progress. Later blocks
    with the same model and clock end before a layer that they cannot finish in time.

    Args:
        model: The model that the loop trains.
        optimizer: Its optimizer, or a wrapper of it. `step` must work without a closure. Without one, steps of every
            torch optimizer that holds the model's parameters count.
        seconds: Time from entering the block to the deadline, greater than 0; `math.inf` for no deadline.
        layers: The model's layers. The default is `find_layers(model)`, which is right if the model declares its
            modules in the order of their calls.
        clock: Returns seconds. On an accelerator, the block waits for the device before it reads the clock.
        upload_bytes_per_second: Rate at which the update is sent; the block then ends early enough to send it before
            the deadline. The default reserves no time.
        scaler: The `torch.amp.GradScaler` of the loop, if it has one.
        accumulate: Number of backward passes per optimizer step. By default the block learns it from earlier steps;
            before the first whole step, it steps only if the loop does. Pass 1 if the passes of a step differ, such as
            those over real and over generated images: they then count as one.
        before_step: A function without arguments that the block calls before its own last step, such as the loop's
            clipping. Gradients of unfinished layers are None.

    Returns:
        A context manager that gives the `Work` of the block, and that can be entered once.

    Raises:
        InvalidSetting: An argument has a wrong type, or a number is not greater than 0.
        UnsuitableModel: The optimizer needs a closure or holds no whole layer of the model, `layers` belong to another
            model, the model has no trainable parameters, or it is trained by several processes.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with deadline(model, optimizer, seconds=60) as work:
    ...     for _ in range(3):
    ...         optimizer.zero_grad()
    ...         model(torch.ones(4, 2)).sum().backward()
    ...         optimizer.step()
    >>> work.steps, work.depth, work.interrupted, sorted(work.update(num_examples=4).deltas)
    (3, 2, False, ['0.bias', '0.weight', '2.bias', '2.weight'])
    """
    if seconds is None:
        raise InvalidSetting("seconds is missing; pass the time to the deadline, or math.inf for no deadline")
    check_positive("seconds", seconds, finite=False)
    if upload_bytes_per_second is not None:
        check_positive("upload_bytes_per_second", upload_bytes_per_second, finite=False)
    if accumulate is not None:
        check_type("accumulate", accumulate, int, "a whole number of backward passes")
        check_positive("accumulate", accumulate, finite=False)
    check_type("model", model, nn.Module, "an nn.Module")
    check_optimizer(optimizer)
    check_type("scaler", scaler, (Scaler, type(None)), "a torch.amp.GradScaler")
    for name, function in (("clock", clock), ("before_step", before_step or time.monotonic)):
        if not callable(function):
            raise InvalidSetting(f"{name} is of type {type(function).__name__}; give a function")
    layers = find_layers(model) if layers is None else layers
    check_type("layers", layers, Layers, "the result of salf.find_layers(model)")
    check_suitable(model, optimizer, layers)
    wrapper, model = model, unwrapped(model)
    device = model.get_parameter(layers[0].parameters[0]).device
    stopwatch, rate = Stopwatch(clock, seconds, device), upload_bytes_per_second or math.inf
    return Deadline(model, wrapper, optimizer, layers, stopwatch, rate, scaler, accumulate, before_step)
