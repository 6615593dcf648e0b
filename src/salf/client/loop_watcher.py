"""The block that watches a training loop, ends it at the deadline, and keeps what it has finished."""

from collections.abc import Callable, Mapping
from types import TracebackType

import torch
from torch import nn
from torch.optim import Optimizer

from salf.client.final_step import FinalStep, Scaler, warn
from salf.client.forecast import forecast_of
from salf.client.hooks import Hooks, is_compiled
from salf.client.optimizer_steps import OptimizerSteps
from salf.client.step_progress import StepProgress
from salf.client.suitability import held_layers, is_private, runs_in_buckets
from salf.client.time_budget import Stopwatch, TimeBudget, TimeUp
from salf.client.torch_events import BackwardCall, StepArguments
from salf.client.weight_versions import WeightVersions
from salf.client.work import BlockRecord, Work
from salf.errors import InvalidSetting
from salf.layers import Layers, tensors_in

# How often a loop whose time is up may ask for a batch, or begin a pass, before the block leaves it.
_REFUSALS, _PATIENCE = 1000, 32


class Deadline:
    """The context manager that `deadline` returns.

    It passes the events of the loop to its parts. `StepProgress` knows which layers are complete, `TimeBudget` when to
    leave, `FinalStep` what happens to the gradients then, and `BlockRecord` what is finished.

    Attributes:
        optimizer: The optimizer of the block's own last step. It may be set until the block ends, if the loop makes it.
        ends_itself: Whether the loop ends itself when `Work.time_is_up`, so that an interrupted backward pass returns
            early; `Work.batches` sets it.
    """

    def __init__(
        self,
        model: nn.Module,
        wrapper: nn.Module,
        optimizer: Optimizer | None,
        layers: Layers,
        stopwatch: Stopwatch,
        upload_bytes_per_second: float,
        scaler: Scaler | None,
        accumulate: int | None,
        before_step: Callable[[], object] | None,
    ) -> None:
        """Prepare a block; see `deadline` for the arguments, and `unwrapped` for the difference of the models."""
        self.optimizer = optimizer
        self._model, self._layers = model, layers
        self._parameters = {name: model.get_parameter(name) for layer in layers for name in layer.parameters}
        held = layers if optimizer is None else held_layers(optimizer, layers, self._parameters)
        self._sizes = {layer.name: sum(self._parameters[name].nbytes for name in layer.parameters) for layer in held}
        buffer_bytes = sum(model.get_buffer(name).nbytes for layer in held for name in layer.buffers)
        self._forecast = forecast_of(model, stopwatch.clock)
        self._record = BlockRecord(model, layers, self._forecast.spare_copies)
        self._stopwatch, self._device = stopwatch, next(iter(self._parameters.values())).device
        self._budget = TimeBudget(
            stopwatch, self._forecast, self._record, self._sizes, buffer_bytes, upload_bytes_per_second
        )
        self._progress = StepProgress(model, layers, self._sizes, self._forecast.pattern, accumulate)
        self._weights = WeightVersions(self._parameters.values())
        self._final = FinalStep(self._parameters, self._progress, self._record, scaler, before_step)
        self._hooks, self._is_private = Hooks(model, wrapper), is_private(wrapper, optimizer)
        self._is_indivisible = self._is_private or is_compiled(wrapper) or runs_in_buckets(wrapper)
        self._steps = OptimizerSteps(self._parameters, layers, self._sizes, self._record, self._forecast, self._budget)
        self._stepped_in_backward: set[str] = set()
        self._backward_calls = self._refusals = self._passes_after = 0
        self.ends_itself = self._within_step = False
        self._is_evaluating = self._is_leaving = self._waits_for_step = self._left_in_step = False
        self._noticed: float | None = None  # when the time was up; the exception itself would keep the loop's frames
        self._expected: set[str] = set()
        self._kept_bytes = 0
        self._steps_at_cut: dict[str, int] = {}

    def __enter__(self) -> Work:
        if self._hooks.are_registered or self._record.finished:
            raise InvalidSetting("a deadline block can be entered only once; call salf.deadline(...) for each block")
        self._hooks.register(self, self._parameters)
        self._stopwatch.start()
        return Work(self._record, self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        is_own = isinstance(error, TimeUp) and error.budget is self._budget
        try:
            if isinstance(error, TimeUp) and is_own:
                self._latch(error)
            if self._noticed is not None and (error is None or is_own):
                # A loop that ends after one pass would not have made it a part of a larger group.
                self._finish_step(is_last_pass=error is None and not self.ends_itself)
        finally:
            self._hooks.remove()
            self._final.drop_unfinished()
            self._progress.buffers.restore_unchanged(self._steps_at_cut, self._record.layer_steps)
            self._steps.seen.clear()
            now = self._stopwatch.now()
            self._record.finish(self._model, now - self._stopwatch.started)
        if is_own or error is None:
            self._close(now)
        return is_own

    def on_model(self, arguments: tuple[object, ...], named: Mapping[str, object]) -> None:
        """React to the start of a forward pass."""
        self._steps.forget_unfinished()
        now = self._stopwatch.now()
        self._is_evaluating = not torch.is_grad_enabled()
        if not self._is_evaluating:
            self._passes_after += self._noticed is not None and self._model.training
            is_over = self._noticed is not None and (not self.ends_itself or self._passes_after > _PATIENCE)
            if self._noticed is not None and is_over and not self._is_within_step():
                raise TimeUp(self._budget, self._noticed)
            self._note_device()
            tensor = next(tensors_in([arguments, named]), None)
            self._progress.begin_pass(now, tensor.shape[0] if tensor is not None and tensor.ndim else 0)
            self._budget.begin_pass(now)
            if now >= self._budget.careful_from and not self.ends_itself:
                self._leave_unless_layer_fits(None, now, self._progress.kept_bytes())

    def on_module(self, name: str) -> None:
        """React to the next part of a forward pass, or of one that a checkpoint repeats in the backward pass."""
        if self._progress.since is None:  # the loop calls the model's modules without the model
            self.on_model((), {})
            return
        if self._backward_calls:
            self._progress.pass_in_progress.repeating[name] += 1
        elif not (torch.is_grad_enabled() or self._is_evaluating):
            self._progress.pass_in_progress.hidden[name] += 1
        now = self._stopwatch.clock()
        may_leave = self._backward_calls or not self.ends_itself
        if now >= self._budget.careful_from and may_leave and self._may_interrupt():
            order = self._progress.order
            self._leave_unless_layer_fits(order[-1] if order else None, now, self._progress.kept_bytes())

    def on_backward(self, call: BackwardCall, roots: tuple[object, ...], inputs: tuple[object, ...] | None) -> None:
        """Run a backward call; if it is cut and the loop goes on, return early."""
        if self._backward_calls:
            self._progress.begin_segment(roots, inputs)
            call()
            return
        self._steps.forget_unfinished()
        is_cut = self._noticed is not None
        now = self._stopwatch.clock()
        if self._weights.begin_backward():
            self._hooks.watch_gradients(self, self._parameters)  # those that the loop has unfrozen
        self._progress.begin_backward(now, roots, inputs, exact=now >= self._budget.careful_from or is_cut)
        needs_gradient = any(getattr(root, "requires_grad", True) for root in roots)
        if is_cut and self._may_interrupt() and (self._progress.pass_in_progress.expected or not needs_gradient):
            self._give_up_pass()
            return
        self._backward_calls += 1
        try:
            if not is_cut and self._progress.pass_in_progress.expected and self._may_interrupt():
                self._budget.leave_if_up(now)
            call()
        except TimeUp as up:
            if up.budget is not self._budget:
                raise
            self._latch(up)
            if not self._lets_loop_step():
                raise
            self._give_up_pass()
        except BaseException:
            self._progress.cut_pass()  # the loop may go on with another batch
            self._stepped_in_backward = set()
            raise
        else:
            self._end_backward()
        finally:
            self._backward_calls -= 1

    def on_gradient(self, name: str) -> None:
        """React to the gradient of a parameter, which may complete a layer."""
        layer, budget = self._progress.arrive(name), self._budget
        if not budget.is_precise:
            return
        if layer is None:
            if self._noticed is None and self._progress.needs_more(name) and self._may_interrupt():
                budget.leave_if_up(self._stopwatch.now())
            return
        now, since = self._stopwatch.now(), self._progress.since
        if since is not None:
            self._forecast.layers[layer].add(now - since)
        self._progress.since = now
        is_last = len(self._progress.complete) >= len(self._sizes)
        if now >= budget.careful_from and not is_last and self._may_interrupt() and self._noticed is None:
            self._leave_unless_layer_fits(layer, now, self._progress.kept_bytes())

    def on_scale(self, scaler: torch.amp.GradScaler) -> None:
        """Remember the loop's gradient scaler, for the block's own step."""
        if scaler.is_enabled() and self._final.scaler is None:
            self._final.scaler = scaler

    def before_step(
        self, optimizer: Optimizer, arguments: tuple[object, ...], named: Mapping[str, object]
    ) -> StepArguments | None:
        """React to the start of an optimizer's step."""
        return self._steps.before(optimizer, arguments, named, self._end_passes)

    def after_step(self, optimizer: Optimizer) -> None:
        """React to the end of an optimizer's step."""
        had_closure = self._steps.is_in_closure
        stepped = self._steps.after(optimizer)
        if not stepped:
            return
        if had_closure:
            self._end_passes()
        if self._backward_calls:
            self._stepped_in_backward |= stepped
            self._weights.begin_step()
        else:
            self._count_step(stepped)
            self._leave_after_step()

    def _end_passes(self) -> None:
        """End the passes of a step whose gradients are there."""
        if self._noticed is not None:
            self._final.drop_unfinished()
        elif not self._backward_calls:
            self._progress.end_pass(at_step=True)

    def _may_interrupt(self) -> bool:
        """Say whether a pass may be interrupted here."""
        return not self._is_indivisible and not self._is_within_step()

    def _is_within_step(self) -> bool:
        """Say whether the weights have changed since the step's first pass, as within a step of SAM."""
        if not self._backward_calls:  # within a call, the weights stay
            self._within_step = self._weights.are_within_step(self._progress.passes_per_step)
        return self._within_step

    def _leave_unless_layer_fits(self, previous: str | None, now: float, done: int) -> None:
        """Leave the loop unless the layer after `previous` can be finished; see `TimeBudget`."""
        if self._noticed is None and self._is_within_step():
            self._waits_for_step = True
        elif self._noticed is None:
            layer, whole = self._forecast.next_layer(previous), self._is_indivisible
            try:
                self._budget.leave_unless_layer_fits(layer, now, self._progress.since, done, whole_pass=whole)
            except TimeUp as up:
                self._latch(up)  # the loop may catch it
                raise

    def _leave_after_step(self) -> None:
        """Leave a loop whose last step was waited for, or which cannot be left at another place."""
        if self.ends_itself or self._is_leaving:
            return
        self._left_in_step = True
        if self._noticed is not None:
            raise TimeUp(self._budget, self._noticed)
        if self._waits_for_step or not self._hooks.see_the_model:
            now = self._stopwatch.now()
            if now >= self._budget.careful_from:
                self._leave_unless_layer_fits(None, now, 0)
        self._left_in_step = False

    def _latch(self, time_up: TimeUp) -> None:
        """Note that the time is up, and what the pass in progress has reached."""
        if self._noticed is None:
            self._noticed, self._record.interrupted = time_up.noticed, True
            self._expected = self._progress.cut_pass()
            self._kept_bytes = self._progress.kept_bytes()
            self._steps_at_cut = dict(self._record.layer_steps)

    def _lets_loop_step(self) -> bool:
        """Say whether the loop's own step decides what the gradients of the interrupted step are."""
        progress = self._progress
        is_first = progress.passes_per_step is None and max(progress.passes.values(), default=0) <= 1
        return self.ends_itself or self.optimizer is None or is_first

    def _give_up_pass(self) -> None:
        """Prepare the gradients for the loop's own step after a backward pass that was cut or not begun."""
        self._expected |= self._progress.cut_pass()
        self._final.weigh()
        self._final.hide_unfinished(self._expected)
        if self._steps.is_in_closure:  # the step follows at once
            self._final.drop_unfinished()

    def is_time_up(self) -> bool:
        """Say whether a loop that ends itself should end."""
        if self._noticed is None and not self._record.finished and not self._is_within_step():
            now = self._stopwatch.clock()
            if now >= self._budget.careful_from:
                self._progress.end_pass()
                self._progress.since = now = self._stopwatch.now()
                try:
                    self._leave_unless_layer_fits(None, now, self._progress.kept_bytes())
                except TimeUp as up:
                    self._latch(up)
                    self._final.weigh()
        return self._noticed is not None or self._record.finished

    def refuse_batch(self) -> None:
        """Count a refused batch; leave a loop that does not end without batches."""
        self._refusals += 1
        if self._refusals > _REFUSALS and self._noticed is not None and not self._record.finished:
            raise TimeUp(self._budget, self._noticed)

    def _count_step(self, layers: set[str]) -> None:
        progress = self._progress
        self._record.count_step(layers, progress.passes, progress.examples)
        if self._noticed is None:
            progress.learn_step(layers)
            progress.buffers.discard()
        progress.begin_step(layers)
        self._weights.begin_step()

    def _end_backward(self) -> None:
        """Note that a backward call was not cut; count steps that it took itself."""
        self._progress.end_backward()
        self._steps.begin()
        self._forecast.learn_order(self._progress.order)
        if self._stepped_in_backward:
            self._progress.end_pass(at_step=True)
            self._count_step(self._stepped_in_backward)
            self._stepped_in_backward = set()

    def _finish_step(self, *, is_last_pass: bool) -> None:
        """Take the block's own last step unless the loop has taken it, and undo the rest of the interrupted one."""
        self._is_leaving, self._steps.is_in_closure = True, False
        self._steps.forget_unfinished()
        self._forecast.learn_order(self._progress.order)
        if not self._lets_loop_step():
            self._steps.seconds = 0.0
        optimizers = [*self._steps.seen.values()] if self.optimizer is None else [self.optimizer]
        if self._stepped_in_backward:
            self._count_step(self._stepped_in_backward)
        if self._left_in_step:
            self._final.update_scaler()
        # A loop that got its only pass back has decided against a step.
        is_unwanted = self._is_private or (self.ends_itself and self._progress.passes_per_step == 1)
        self._final.take(optimizers, is_wanted=not is_unwanted, is_last_pass=is_last_pass)

    def _close(self, now: float) -> None:
        """Learn from a block that ended, and warn of steps that were not seen."""
        if self._noticed is not None:
            self._budget.learn_from_leaving(self._noticed, now, self._steps.seconds, self._kept_bytes)
        elif not self._record.depth and self._weights.have_changed():
            warn("the weights changed without a step of a torch optimizer, so that nothing is sent; step with one")

    def _note_device(self) -> None:
        """Follow a model that the loop moves to another device."""
        before, self._device = self._device, next(iter(self._parameters.values())).device
        if self._device != before:
            self._stopwatch.move(self._device)
