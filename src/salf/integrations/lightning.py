"""Rounds of Lightning's `Trainer` with a deadline, as a callback."""

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer import call

from salf import client
from salf.client import Work
from salf.errors import SalfError, check_positive
from salf.layers import Layers


class DeadlineCallback(Callback):
    """Ends `trainer.fit()` at a deadline and keeps what it has finished, with automatic or manual optimization.

    `fit` returns as usual. In an unfinished group of passes the block takes the step itself, clipped as the trainer
    does, without the hooks around a step. The time runs from the start of training, after the loaders and the sanity
    check. The state of the optimizers is carried over to the next `fit` with this callback.

    Args:
        seconds: Time to the deadline.
        layers: The layers of the module, as in `salf.deadline`.
        clock: Returns seconds.
        accumulate: The number of passes per step in manual optimization; in automatic optimization it is the trainer's.

    Raises:
        InvalidSetting: `seconds` is not a number greater than 0.
        UnsuitableModel: When training starts, if the module cannot be trained under a deadline; see `salf.deadline`.
    """

    def __init__(
        self,
        seconds: float,
        *,
        layers: Layers | None = None,
        clock: Callable[[], float] = time.monotonic,
        accumulate: int | None = None,
    ) -> None:
        check_positive("seconds", seconds, finite=False)
        self._seconds, self._layers, self._clock, self._accumulate = seconds, layers, clock, accumulate
        self._block: client.Deadline | None = None
        self._work: Work | None = None
        self._states: list[dict[str, Any]] = []

    @property
    def work(self) -> Work:
        """What the last `fit` has finished; make the update before the next one.

        Raises:
            SalfError: No training has started.
        """
        if self._work is None:
            raise SalfError("no training has started under this deadline; call trainer.fit(...) with this callback")
        return self._work

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the block."""
        for optimizer, state in zip(trainer.optimizers, self._states, strict=False):
            optimizer.load_state_dict(state)
        passes = trainer.accumulate_grad_batches if pl_module.automatic_optimization else self._accumulate
        self._block = client.deadline(
            pl_module,
            None,
            self._seconds,
            layers=self._layers,
            clock=self._clock,
            accumulate=passes,
            before_step=lambda: _clip(trainer, pl_module),
        )
        self._block.ends_itself = True
        if len(trainer.optimizers) == 1:
            self._block.optimizer = trainer.optimizers[0]
        self._work = self._block.__enter__()
        self._stop_in_time(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Stop the trainer when the time is up."""
        self._stop_in_time(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the block, and keep the state of the optimizers."""
        self._end(None)
        self._states = [optimizer.state_dict() for optimizer in trainer.optimizers]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the block after an error of the loop, which passes through."""
        self._end(exception)

    def _stop_in_time(self, trainer: Trainer) -> None:
        if self.work.time_is_up:
            trainer.should_stop = True

    def _end(self, error: BaseException | None) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.__exit__(None if error is None else type(error), error, None)


def _clip(trainer: Trainer, module: LightningModule) -> None:
    """Clip an unfinished group of passes as the trainer does a whole one, before the block takes its step."""
    if module.automatic_optimization:
        optimizer = trainer.optimizers[0]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            scaler.unscale_(optimizer)
        value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        hook = call._call_lightning_module_hook  # noqa: SLF001 - a module's own hook may log, which needs this caller
        hook(trainer, "configure_gradient_clipping", optimizer, value, algorithm)
