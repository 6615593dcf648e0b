"""Backpropagation that may run out of time, without losing the layers it has finished.

Gradients become ready from the last layer to the first. `deadline` watches an ordinary training loop; when the time
is up it leaves the loop, wherever that is, steps the optimizer over the layers whose gradients are complete, and hands
over a partial update.
"""

import inspect
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from types import TracebackType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from salf.client.forecast import Stopwatch, pace_of
from salf.client.work import StepInTheMaking, Work
from salf.errors import InvalidSetting, UnsuitableModel
from salf.layers import Layer, Layers, find_layers


@runtime_checkable
class Scaler(Protocol):
    """What is used of `torch.amp.GradScaler`."""

    def step(self, optimizer: Optimizer) -> object:
        """Unscale the gradients and step, unless one of them is not finite."""
        ...

    def update(self) -> None:
        """Adapt the scale."""
        ...


def truncated_gradients(
    loss: Tensor, parameters: Mapping[str, Tensor], layers: Layers, depth: int
) -> dict[str, Tensor]:
    """Return the gradients of the last `depth` layers, having run backpropagation no further than them.

    They are bit for bit those of the full backward pass. A parameter that `loss` does not depend on has none. Raises
    `InvalidSetting` for a depth that the layers do not have.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> loss = model(torch.ones(2, 3)).sum()
    >>> sorted(truncated_gradients(loss, dict(model.named_parameters()), find_layers(model), depth=1))
    ['2.bias', '2.weight']
    """
    if not 0 <= depth <= len(layers):
        raise InvalidSetting(f"depth is {depth!r}; give a number of layers from 0 to {len(layers)}")
    names = [name for layer in layers[len(layers) - depth :] for name in layer.parameters]
    if not names:
        return {}
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
        loss, [parameters[name] for name in names], allow_unused=True
    )
    return {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


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
    """Give the training loop in a `with` block `seconds` of time, and keep what it finishes.

    When the time is up the block ends: whole steps stay; of an interrupted backward pass the layers with complete
    gradients are stepped once more, alone; everything unfinished is thrown away, buffers included, and no hook stays
    on the model. What the loop does between its backward pass and its step, such as clipping gradients, is not done
    to the interrupted step. The loop is looked at whenever a module that owns parameters is called and whenever a
    layer's gradient is ready, never in the middle of one layer or of loading a batch; an exception of the loop itself
    passes untouched.

    Having timed earlier steps on the same model, the block looks ahead and ends before a layer that it cannot finish.
    `upload_bytes_per_second` makes it keep the time in hand that sending the update will take. Pass the `scaler` where
    one is used. `accumulate` is the number of backward passes per optimizer step, learnt from the first whole step if
    it is not given; a layer counts as finished only when the last of them has reached it. `layers` are the model's
    layers as `find_layers` gives them; by default those found without an example. `clock` returns seconds; on an
    accelerator the device is waited for before the clock is read.

    Only what reports each layer's gradient as it becomes ready can be cut: a model compiled into one backward pass, or
    wrapped so that gradients arrive in buckets, ends at the deadline with the whole pass or none of it.

    Raises `InvalidSetting` or `UnsuitableModel` at once for what cannot work: a time that is not above 0, an optimizer
    whose step needs a closure, a model or optimizer without trainable parameters in common.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with deadline(model, optimizer, seconds=60) as work:
    ...     for _ in range(3):
    ...         optimizer.zero_grad()
    ...         model(torch.ones(4, 2)).sum().backward()
    ...         optimizer.step()
    >>> work.steps, work.depth, work.interrupted, sorted(work.update(num_examples=4).deltas)
    (3, 1, False, ['bias', 'weight'])
    """
    _check_number("seconds", seconds)
    if upload_bytes_per_second is not None:
        _check_number("upload_bytes_per_second", upload_bytes_per_second)
    if accumulate is not None:
        _check_type("accumulate", accumulate, int)
        _check_number("accumulate", accumulate)
    _check_type("model", model, nn.Module)
    _check_type("optimizer", optimizer, Optimizer)
    if scaler is not None:
        _check_type("scaler", scaler, Scaler)
    if not callable(clock):
        raise InvalidSetting(f"clock is a {type(clock).__name__}; give a function that returns seconds")
    found = find_layers(model) if layers is None else layers
    _check_type("layers", found, Layers)
    _check_suitable(model, optimizer, found)
    stopwatch = Stopwatch(clock, seconds, next(iter(_optimised(model, optimizer).values())).device)
    return Deadline(model, optimizer, found, stopwatch, upload_bytes_per_second or math.inf, scaler, accumulate)


class _TimeUp(BaseException):
    """Leaves the user's loop; no `except Exception` on the way holds it up."""

    def __init__(self, block: "Deadline", noticed: float) -> None:
        super().__init__("the deadline of a salf block")
        self.block = block
        self.noticed = noticed


class _Hook:
    """Tells a block that a module is called; a copy, which a copy of the module carries along, tells nobody."""

    def __init__(self, react: Callable[[], None]) -> None:
        self._react = react

    def __call__(self, *_: object) -> None:
        self._react()

    def __reduce__(self) -> tuple[object, ...]:
        return (_Hook, (_ignore,))


def _ignore() -> None:
    pass


class Deadline:
    """The context manager that `deadline` returns: it watches one block's training loop through hooks."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        layers: Layers,
        stopwatch: "Stopwatch",
        upload_bytes_per_second: float,
        scaler: Scaler | None,
        accumulate: int | None,
    ) -> None:
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._watch, self._upload_bytes_per_second = stopwatch, upload_bytes_per_second
        self._parameters = _optimised(model, optimizer)
        self._layers = tuple(layer for layer in layers if all(name in self._parameters for name in layer.parameters))
        self._bytes = {
            layer.name: sum(self._parameters[name].nbytes for name in layer.parameters) for layer in self._layers
        }
        self._all_bytes = sum(self._bytes.values())
        self._buffer_bytes = sum(model.get_buffer(name).nbytes for layer in self._layers for name in layer.buffers)
        self._owner = {name: layer for layer in self._layers for name in layer.parameters}
        self._pace = pace_of(model, stopwatch.clock)
        self._work = Work(model, layers, self._pace)
        self._reserve, self._luck = (kept.of(stopwatch.seconds) for kept in (self._pace.reserve, self._pace.luck))
        self._step = StepInTheMaking(model, layers, self._bytes, self._pace.passes, accumulate)
        self._handles: list[RemovableHandle] = []
        self._precise = True
        # Before this moment the end of the time is so far away that no forecast needs to be looked at.
        self._careful_from = -math.inf
        self._stepped: list[Layer] = []
        self._stepping_since = self._stepping_seconds = 0.0

    def __enter__(self) -> Work:
        if self._handles or self._work.finished:
            raise InvalidSetting("a deadline block can be entered only once; call salf.deadline(...) for each block")
        self._watch.start()
        self._add_hooks()
        return self._work

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        mine = isinstance(error, _TimeUp) and error.block is self
        self._work.interrupted = mine
        try:
            if mine:
                self._keep_finished_layers()
        finally:
            for handle in self._handles:
                handle.remove()
            now = self._watch.now()
            self._work.end(self._model, now - self._watch.started)
        if isinstance(error, _TimeUp) and mine:
            self._pace.leave.add(now - error.noticed - self._stepping_seconds)
            limit = self._watch.limit - self._upload_seconds(self._step.complete_bytes)
            hoped = not self._work.steps and self._work.depth <= 1
            reserve = self._pace.luck if hoped else self._pace.reserve
            reserve.judge(late=now > limit, block_seconds=self._watch.seconds)
        return mine

    def _add_hooks(self) -> None:
        owners = {name.rpartition(".")[0] for name in self._owner}
        for name, module in self._model.named_modules():
            if name == "":
                self._handles.append(module.register_forward_pre_hook(_Hook(self._on_model)))
            elif name in owners:
                self._handles.append(module.register_forward_pre_hook(_Hook(self._on_module)))
        for name in self._owner:
            add_hook = self._parameters[name].register_post_accumulate_grad_hook
            self._handles.append(add_hook(partial(self._on_gradient, name)))  # type: ignore[no-untyped-call]
        self._handles.append(self._optimizer.register_step_pre_hook(self._before_step))
        self._handles.append(self._optimizer.register_step_post_hook(self._after_step))

    def _on_model(self) -> None:
        """Note that a forward pass begins."""
        now = self._watch.now()
        if torch.is_grad_enabled():
            self._step.begin_pass(now)
            if now >= self._careful_from:
                whole = self._all_bytes
                margin = 2 * self._pace.whole_step() + self._reserve + self._pace.foresee(None, whole, whole)
                self._careful_from = self._watch.limit - margin - self._upload_seconds(whole)
            # On an accelerator every look at the clock waits for the device; far from the deadline that is spared.
            self._precise = self._watch.is_cheap or now >= self._careful_from
        if now >= self._careful_from:
            self._leave_unless_it_fits(now, self._pace.following(None), 0)

    def _on_module(self) -> None:
        """Note that a forward pass goes on, or that a checkpointed part of it is repeated for the backward pass."""
        if self._step.since is None:  # the model's parts are called without the model itself
            self._on_model()
            return
        now = self._watch.clock()
        if now >= self._careful_from:
            following = self._pace.following(self._step.order[-1] if self._step.order else None)
            self._leave_unless_it_fits(now, following, self._step.complete_bytes if self._step.order else 0)

    def _on_gradient(self, name: str, _: Tensor) -> None:
        """Note that a parameter's gradient is ready, and with it perhaps a layer."""
        self._step.arrive(name)
        layer = self._owner[name]
        if layer.name not in self._step.complete:
            if self._precise and self._step.needs_another_pass(name):
                self._leave_if_time_is_up(self._watch.now())
            return
        self._step.order.append(layer.name)
        if not self._precise:
            return
        now = self._watch.now()
        if self._step.since is not None:
            self._pace.record(layer.name, now - self._step.since)
        self._step.since = now
        if now >= self._careful_from and len(self._step.complete) < len(self._layers):
            self._leave_unless_it_fits(now, self._pace.following(layer.name), self._step.complete_bytes)

    def _leave_unless_it_fits(self, now: float, following: str | None, done: int) -> None:
        """Leave the loop if the time is up, or will be before the `following` layer can be conveyed with the others.

        `done` is the size in bytes of the layers that this step has already completed.
        """
        since = now if self._step.since is None else self._step.since
        if now >= self._watch.limit:
            self._pace.deny(following, now - since)
        self._leave_if_time_is_up(now)
        stepped = done if following is None else done + self._bytes.get(following, 0)
        copied = 0 if self._work.steps else stepped
        # Who has nothing to convey yet has nothing to lose, and leaves only when even luck would not be enough.
        in_vain = not (self._work.steps or done)
        if not in_vain:
            takes = self._reserve + self._pace.foresee(following, stepped, copied)
        else:
            takes = self._luck + self._pace.hope(following, stepped, copied)
        ready = since + takes + self._upload_seconds(stepped)
        if max(now, ready) > self._watch.limit:
            self._pace.ease(following, stepped, copied, in_vain=in_vain)
            raise _TimeUp(self, now)

    def _leave_if_time_is_up(self, now: float) -> None:
        if now >= self._watch.limit:
            raise _TimeUp(self, now)

    def _upload_seconds(self, stepped: int) -> float:
        conveyed = self._all_bytes if self._work.steps else stepped
        return (conveyed + self._buffer_bytes) / self._upload_bytes_per_second

    def _before_step(self, _: Optimizer, arguments: tuple[object, ...], named: dict[str, object]) -> None:
        if named.get("closure", arguments[1] if len(arguments) > 1 else None) is not None:
            raise InvalidSetting("optimizer.step(closure) runs backward passes of its own; use step() under a deadline")
        before = self._now_if_precise()
        self._stepped = self._layers_to_step()
        copied = self._work.keep_initial(name for layer in self._stepped for name in layer.parameters)
        self._stepping_since = self._now_if_precise()
        if copied and self._precise:
            self._pace.keep.add(copied, self._stepping_since - before)
        self._stepping_seconds = self._stepping_since - before

    def _after_step(self, *_: object) -> None:
        if getattr(self._optimizer, "found_inf", False):  # a fused optimizer that a GradScaler has told to do nothing
            return
        size = sum(self._bytes[layer.name] for layer in self._stepped)
        if self._precise and size:
            took = self._watch.now() - self._stepping_since
            self._stepping_seconds += took
            self._pace.step.add(size, took)
        self._work.count_step([layer.name for layer in self._stepped], whole=not self._work.interrupted)
        if not self._work.interrupted:
            self._pace.passes = self._step.passes()
            self._pace.learn_order(self._step.order)
            self._step.begin(self._pace.passes)

    def _layers_to_step(self) -> list[Layer]:
        return [
            layer for layer in self._layers if any(self._parameters[name].grad is not None for name in layer.parameters)
        ]

    def _now_if_precise(self) -> float:
        return self._watch.now() if self._precise else 0.0

    def _keep_finished_layers(self) -> None:
        """Step once more over the layers whose gradients are complete, and undo whatever else the pass left behind."""
        self._pace.learn_order(self._step.order)
        done = [layer for layer in self._layers if layer.name in self._step.complete]
        kept = {id(self._parameters[name]) for layer in done for name in layer.parameters}
        parameters = [value for group in self._optimizer.param_groups for value in group["params"]]
        for parameter in parameters:
            if id(parameter) not in kept:
                parameter.grad = None
        self._stepping_seconds = 0.0
        before = dict(self._work.layer_steps)
        if done and self._scaler is None:
            self._optimizer.step()
        elif done and self._scaler is not None:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        for parameter in parameters:
            parameter.grad = None
        after = self._work.layer_steps
        self._step.restore_buffers(name for name in after if after[name] == before[name])


def _optimised(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Name the model's trainable parameters that the optimizer holds."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: value for name, value in model.named_parameters() if value.requires_grad and id(value) in held}


def _check_suitable(model: nn.Module, optimizer: Optimizer, layers: Layers) -> None:
    problems = []
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        problems.append(f"{type(optimizer).__name__}.step needs a closure, which runs backward passes of its own")
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    unknown = [name for layer in layers for name in layer.parameters if name not in parameters]
    problems += [f"the layers name '{name}', which is no parameter of the model" for name in unknown]
    unknown = [name for layer in layers for name in layer.buffers if name not in buffers]
    problems += [f"the layers name '{name}', which is no buffer of the model" for name in unknown]
    held = _optimised(model, optimizer)
    if not held:
        problems.append("the optimizer holds no trainable parameter of the model")
    elif not any(all(name in held for name in layer.parameters) for layer in layers):
        problems.append("the optimizer holds no layer of the model whole")
    if problems:
        raise UnsuitableModel(f"{type(model).__name__} cannot be trained under a deadline", problems)


def _check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise InvalidSetting(f"{name} is a {type(value).__name__}; deadline() needs a {kind.__name__}")


def _check_number(name: str, value: object) -> None:
    try:
        is_above = not isinstance(value, bool) and isinstance(value, Real) and float(value) > 0
    except OverflowError:  # a whole number that no float holds
        is_above = False
    if not is_above:
        raise InvalidSetting(f"{name} is {value!r:.40}; give a number above 0")
