"""The last step of an interrupted block: over the gradients of finished passes and layers, and nothing else."""

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer

from salf.client.step_progress import StepProgress
from salf.client.work import BlockRecord
from salf.update import all_finite


@runtime_checkable
class Scaler(Protocol):
    """The part of `torch.amp.GradScaler` that a deadline uses."""

    def step(self, optimizer: Optimizer) -> object:
        """Unscale the gradients and step, unless a gradient is not finite."""
        ...

    def update(self) -> None:
        """Adapt the scale."""
        ...


class FinalStep:
    """Prepares the gradients of an interrupted step, and takes the step unless the loop does.

    If j of the k passes of a step have reached a layer, its gradient is multiplied by k / j. It is then the mean over
    the examples that have reached the layer, as that of a whole step is the mean over all its examples.

    Attributes:
        scaler: The loop's gradient scaler, given or seen; None if it has none.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        progress: StepProgress,
        record: BlockRecord,
        scaler: Scaler | None,
        before_step: Callable[[], object] | None,
    ) -> None:
        """Prepare for one block.

        Args:
            parameters: The parameters in training, by name.
            progress: The step in progress.
            record: The block's record.
            scaler: The loop's gradient scaler, if it has one.
            before_step: The user's function for the gradients, if there is one.
        """
        self._parameters, self._progress, self._record = parameters, progress, record
        self.scaler, self._before_step = scaler, before_step
        self._weighed: set[str] = set()
        self._unfinished: set[str] = set()

    def weigh(self) -> None:
        """Multiply each gradient that is kept by k / j, once."""
        names = [name for layer in self._progress.kept() for name in layer.parameters if name not in self._weighed]
        for name in names:
            gradient, factor = self._parameters[name].grad, self._progress.factor_of(name)
            if gradient is not None and factor != 1:
                gradient.mul_(factor)
        self._weighed.update(names)

    def hide_unfinished(self, expected: Iterable[str]) -> None:
        """Let gradients that are not kept be zero, so that the loop's own code between backward pass and step works.

        Args:
            expected: Names of parameters to which the interrupted pass would have brought a gradient.
        """
        kept = {name for layer in self._progress.kept() for name in layer.parameters}
        for name in {*expected} - kept:
            parameter = self._parameters[name]
            # A new tensor, since the loop may hold the old one.
            parameter.grad = torch.zeros_like(parameter if parameter.grad is None else parameter.grad)
            self._unfinished.add(name)

    def drop_unfinished(self) -> None:
        """Remove the gradients of `hide_unfinished`: a step would move their parameters by momentum or decay."""
        for name in self._unfinished:
            self._parameters[name].grad = None
        self._unfinished.clear()

    def take(self, optimizers: Sequence[Optimizer], *, is_wanted: bool, is_last_pass: bool) -> None:
        """Step over the layers to keep, if there are any left, and remove all gradients.

        Args:
            optimizers: The optimizers that hold the layers.
            is_wanted: Whether to step at all.
            is_last_pass: Whether the loop has ended with this pass, which then is a whole group.
        """
        kept = self._progress.kept()
        if kept and is_wanted:
            reason = self._reason_against(optimizers, is_last_pass=is_last_pass)
            if reason is None:
                self._step(optimizers, {name for layer in kept for name in layer.parameters})
            else:
                warn(reason)
        for parameter in self._all_parameters(optimizers):
            parameter.grad = None

    def _step(self, optimizers: Sequence[Optimizer], kept: set[str]) -> None:
        self.weigh()
        ids = {id(self._parameters[name]) for name in kept}
        for parameter in self._all_parameters(optimizers):
            if id(parameter) not in ids:
                parameter.grad = None
        gradients = [self._parameters[name].grad for name in kept]
        if self.scaler is None and not all_finite([gradient for gradient in gradients if gradient is not None]):
            warn("a gradient of the interrupted step is not finite, so that this step is left out")
            return
        if self._before_step is not None:
            self._before_step()
        try:
            for optimizer in optimizers:
                self._step_with(optimizer)
        except Exception as error:  # noqa: BLE001 - whatever an optimizer refuses must not end the user's program
            name = type(optimizers[0]).__name__
            warn(
                f"the step of {name} after the deadline failed ({type(error).__name__}: {error!s:.200}), so that the "
                "interrupted step is lost; let the loop end itself with work.batches(loader)"
            )
        if self.scaler is not None:
            self.scaler.update()

    def update_scaler(self) -> None:
        """Update a scaler whose step was left before the loop could do so, unless the step was not the scaler's."""
        if self.scaler is not None:
            with suppress(AssertionError):
                self.scaler.update()

    def _step_with(self, optimizer: Optimizer) -> None:
        steps = sum(self._record.layer_steps.values())
        inner = getattr(optimizer, "optimizer", None)
        wrapped = inner if isinstance(inner, Optimizer) else None  # Accelerate's skips steps within a group of passes
        if self.scaler is not None:
            self.scaler.step(wrapped or optimizer)
            return
        optimizer.step()
        if wrapped and sum(self._record.layer_steps.values()) == steps:
            wrapped.step()

    def _reason_against(self, optimizers: Sequence[Optimizer], *, is_last_pass: bool) -> str | None:
        """Say why the finished passes cannot be stepped; None if they can."""
        passes = max(self._progress.passes.values(), default=0)
        lost = f"the gradients of {passes} backward passes are lost"
        if not optimizers:
            return f"{lost}, because no optimizer has stepped yet; pass the optimizer to salf.deadline"
        if self._progress.passes_per_step is None and not (is_last_pass and passes == 1):
            return (
                f"{lost}, because the number of passes per optimizer step is not known yet; "
                "pass accumulate= to salf.deadline"
            )
        return None

    def _all_parameters(self, optimizers: Sequence[Optimizer]) -> list[torch.Tensor]:
        held = [value for optimizer in optimizers for group in optimizer.param_groups for value in group["params"]]
        return held or [*self._parameters.values()]


def warn(reason: str) -> None:
    """Warn that a block loses work, at the place where the user's code meets salf."""
    level, frame = 2, sys._getframe(1)  # noqa: SLF001 - warnings can skip a package's frames only from Python 3.12 on
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("salf."):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"salf: {reason}", UserWarning, stacklevel=level - 1)
