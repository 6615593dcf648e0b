"""The block that gives a training loop a deadline and keeps the layers it finishes.

Gradients become ready from the last layer to the first. When the time is up, the block leaves the loop wherever it is,
and steps the optimizer over the layers whose gradients are complete.
"""

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from salf.client.forecast import forecast_of
from salf.client.hooks import Hooks
from salf.client.step_progress import StepProgress
from salf.client.suitability import check_suitable, trainable_parameters
from salf.client.time_budget import Stopwatch, TimeBudget, TimeUp
from salf.client.work import BlockRecord, Work
from salf.errors import InvalidSetting, check_positive, check_type
from salf.layers import Layer, Layers, find_layers


@runtime_checkable
class Scaler(Protocol):
    """The part of `torch.amp.GradScaler` that a deadline uses."""

    def step(self, optimizer: Optimizer) -> object:
        """Unscale the gradients and step, unless a gradient is not finite."""
        ...

    def update(self) -> None:
        """Adapt the scale."""
        ...


def deadline(
    model: nn.Module,
    optimizer: Optimizer,
    seconds: float,
    *,
    layers: Layers | None = None,
    clock: Callable[[], float] = time.monotonic,
    upload_bytes_per_second: float | None = None,
    scaler: Scaler | None = None,
    accumulate: int | None = None,
) -> "Deadline":
    """Give the training loop in a `with` block a deadline, and keep what it finishes.

    The block ends the loop at its deadline, wherever the loop is. Finished steps stay. If a backward pass is
    interrupted, the optimizer steps once more, over the layers whose gradients are complete. The block discards all
    other gradients, restores the buffers of the other layers, and removes its hooks from the model.

    This last step skips the code between the loop's backward pass and its step, such as gradient clipping, and the code
    after it, such as a scheduler's step. Exceptions of the loop itself pass through unchanged.

    The block checks the time whenever a module that owns parameters is called, and whenever the gradient of a layer is
    ready. It cannot interrupt a single layer, or a data loader. A compiled model, or a wrapper that delivers gradients
    in buckets, may allow no check within the backward pass, which is then kept or lost as a whole.

    The first block on a model knows no durations, so it may pass its deadline by the layer in progress. Later blocks
    with the same model and clock end before a layer that they cannot finish in time.

    Args:
        model: The model that the loop trains.
        optimizer: Its optimizer. `step` must work without a closure.
        seconds: Time from entering the block to the deadline, greater than 0; `math.inf` for no deadline.
        layers: The model's layers. The default is `find_layers(model)`, which is right if the model declares its
            modules in the order of their calls.
        clock: Returns seconds. On an accelerator, the block waits for the device before it reads the clock.
        upload_bytes_per_second: Rate at which the update is sent; the block then ends early enough to send it before
            the deadline. The default reserves no time.
        scaler: The `torch.amp.GradScaler` of the loop, if it has one.
        accumulate: Number of backward passes per optimizer step. A layer is complete when the last of them has reached
            it. By default the block learns the number from the first whole step.

    Returns:
        A context manager that gives the `Work` of the block, and that can be entered once.

    Raises:
        InvalidSetting: An argument has a wrong type, or a number is not greater than 0.
        UnsuitableModel: The optimizer needs a closure or holds no whole layer of the model, `layers` belong to another
            model, or the model has no trainable parameters.

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
    check_positive("seconds", seconds, finite=False)
    if upload_bytes_per_second is not None:
        check_positive("upload_bytes_per_second", upload_bytes_per_second, finite=False)
    if accumulate is not None:
        check_type("accumulate", accumulate, int, "a whole number of backward passes")
        check_positive("accumulate", accumulate, finite=False)
    check_type("model", model, nn.Module, "an nn.Module")
    check_type("optimizer", optimizer, Optimizer, "a torch.optim.Optimizer")
    check_type("scaler", scaler, (Scaler, type(None)), "a torch.amp.GradScaler")
    if not callable(clock):
        raise InvalidSetting(f"clock is of type {type(clock).__name__}; give a function that returns seconds")
    layers = find_layers(model) if layers is None else layers
    check_type("layers", layers, Layers, "the result of salf.find_layers(model)")
    check_suitable(model, optimizer, layers)
    stopwatch = Stopwatch(clock, seconds, next(iter(trainable_parameters(model, optimizer).values())).device)
    return Deadline(model, optimizer, layers, stopwatch, upload_bytes_per_second or math.inf, scaler, accumulate)


class Deadline:
    """The context manager that `deadline` returns.

    It passes the events of the training loop (forward pass, gradient, step) to its parts. `StepProgress` knows which
    layers are complete, `TimeForecast` how long things take, `TimeBudget` when to leave, and `BlockRecord` what is
    finished.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        layers: Layers,
        stopwatch: Stopwatch,
        upload_bytes_per_second: float,
        scaler: Scaler | None,
        accumulate: int | None,
    ) -> None:
        """Prepare a block; see `deadline` for the arguments."""
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._parameters = trainable_parameters(model, optimizer)
        self._layers = tuple(layer for layer in layers if all(name in self._parameters for name in layer.parameters))
        self._sizes = {
            layer.name: sum(self._parameters[name].nbytes for name in layer.parameters) for layer in self._layers
        }
        buffer_bytes = sum(model.get_buffer(name).nbytes for layer in self._layers for name in layer.buffers)
        self._forecast = forecast_of(model, stopwatch.clock)
        self._record = BlockRecord(model, layers, self._forecast.spare_copies)
        self._stopwatch = stopwatch
        self._budget = TimeBudget(
            stopwatch, self._forecast, self._record, self._sizes, buffer_bytes, upload_bytes_per_second
        )
        self._progress = StepProgress(model, layers, self._sizes, self._forecast.passes, accumulate)
        self._hooks = Hooks(model, optimizer)
        self._stepped: list[Layer] = []
        self._stepping_since = self._stepping_seconds = 0.0

    def __enter__(self) -> Work:
        if self._hooks.are_registered or self._record.finished:
            raise InvalidSetting("a deadline block can be entered only once; call salf.deadline(...) for each block")
        self._stopwatch.start()
        self._hooks.register(
            (name for layer in self._layers for name in layer.parameters),
            on_model=self._on_model,
            on_module=self._on_module,
            on_gradient=self._on_gradient,
            before_step=self._before_step,
            after_step=self._after_step,
        )
        return Work(self._record)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        time_up = error if isinstance(error, TimeUp) and error.budget is self._budget else None
        self._record.interrupted = time_up is not None
        try:
            if time_up is not None:
                self._keep_complete_layers()
        finally:
            self._hooks.remove()
            now = self._stopwatch.now()
            self._record.finish(self._model, now - self._stopwatch.started)
        if time_up is not None:
            self._budget.learn_from_leaving(time_up.noticed, now, self._stepping_seconds, self._progress.complete_bytes)
        return time_up is not None

    def _on_model(self) -> None:
        """React to the start of a forward pass."""
        now = self._stopwatch.now()
        if torch.is_grad_enabled():
            self._progress.begin_pass(now)
            self._budget.begin_pass(now)
        if now >= self._budget.careful_from:
            self._leave_unless_layer_fits(None, now, 0)

    def _on_module(self) -> None:
        """React to the next part of a forward pass, or of one that a checkpoint repeats in the backward pass."""
        if self._progress.since is None:  # the loop calls the model's modules without the model
            self._on_model()
            return
        now = self._stopwatch.clock()
        if now >= self._budget.careful_from:
            order = self._progress.order
            previous, done = (order[-1], self._progress.complete_bytes) if order else (None, 0)
            self._leave_unless_layer_fits(previous, now, done)

    def _on_gradient(self, name: str, _: Tensor) -> None:
        """React to the gradient of a parameter, which may complete a layer."""
        layer, budget = self._progress.arrive(name), self._budget
        if not budget.is_precise:
            return
        if layer is None:
            if self._progress.needs_another_pass(name):
                budget.leave_if_up(self._stopwatch.now())
            return
        now, since = self._stopwatch.now(), self._progress.since
        if since is not None:
            self._forecast.layers[layer].add(now - since)
        self._progress.since = now
        if now >= budget.careful_from and len(self._progress.complete) < len(self._layers):
            self._leave_unless_layer_fits(layer, now, self._progress.complete_bytes)

    def _leave_unless_layer_fits(self, previous: str | None, now: float, done: int) -> None:
        """Leave the loop unless the layer after `previous` can be finished; see `TimeBudget`."""
        layer = self._forecast.next_layer(previous)
        self._budget.leave_unless_layer_fits(layer, now, self._progress.since, done)

    def _before_step(self, _: Optimizer, arguments: tuple[object, ...], named: dict[str, object]) -> None:
        if named.get("closure", arguments[1] if len(arguments) > 1 else None) is not None:
            raise InvalidSetting(
                "optimizer.step(closure) runs backward passes itself; call step() without a closure under a deadline"
            )
        before = self._budget.now_if_precise()
        parameters = self._parameters
        self._stepped = [
            layer for layer in self._layers if any(parameters[name].grad is not None for name in layer.parameters)
        ]
        copied = self._record.keep_initial(name for layer in self._stepped for name in layer.parameters)
        self._stepping_since = self._budget.now_if_precise()
        self._stepping_seconds = self._stepping_since - before
        if copied and self._budget.is_precise:
            self._forecast.copy.add(copied, self._stepping_seconds)

    def _after_step(self, *_: object) -> None:
        if getattr(self._optimizer, "found_inf", False):  # a GradScaler told a fused optimizer to skip the step
            return
        size = sum(self._sizes[layer.name] for layer in self._stepped)
        if self._budget.is_precise and size:
            took = self._stopwatch.now() - self._stepping_since
            self._stepping_seconds += took
            self._forecast.step.add(size, took)
        self._record.count_step(layer.name for layer in self._stepped)
        if not self._record.interrupted:
            self._forecast.passes = self._progress.passes()
            self._forecast.learn_order(self._progress.order)
            self._progress.begin_step(self._forecast.passes)

    def _keep_complete_layers(self) -> None:
        """Step over the layers whose gradients are complete, and undo the rest of the interrupted step."""
        self._forecast.learn_order(self._progress.order)
        complete = [layer for layer in self._layers if layer.name in self._progress.complete]
        kept = {id(self._parameters[name]) for layer in complete for name in layer.parameters}
        parameters = [value for group in self._optimizer.param_groups for value in group["params"]]
        for parameter in parameters:
            if id(parameter) not in kept:
                parameter.grad = None
        self._stepping_seconds = 0.0
        before = dict(self._record.layer_steps)
        if complete and self._scaler is None:
            self._optimizer.step()
        elif complete and self._scaler is not None:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        for parameter in parameters:
            parameter.grad = None
        unchanged = {name for name, steps in self._record.layer_steps.items() if steps == before[name]}
        self._progress.buffers.restore(unchanged)
