"""Rounds of `transformers.Trainer` with a deadline."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from salf import client
from salf.client import Deadline, Work
from salf.errors import check_type
from salf.layers import Layers


@contextmanager
def deadline(
    trainer: Trainer,
    seconds: float,
    *,
    layers: Layers | None = None,
    clock: Callable[[], float] = time.monotonic,
    upload_bytes_per_second: float | None = None,
) -> Iterator[Work]:
    """Let `trainer.train()` end at a deadline, return as usual, and keep what it has finished.

    The trainer's own clipping, logging and callbacks run, also for the interrupted step. In an unfinished group of
    passes the block takes the step itself, clipped as the trainer does. The next round's `train()` goes on with the
    same optimizer and its state. A learning rate schedule that the trainer makes begins again in each call, so choose
    `lr_scheduler_type="constant"` for rounds, or pass the trainer a schedule of your own.

    Args:
        trainer: The trainer, on one process.
        seconds: Time to the deadline, from entering the block; it includes what `train()` does before its loop.
        layers: The layers, as in `salf.deadline`; with PEFT, those of `salf.integrations.peft.find_adapter_layers`.
        clock: Returns seconds.
        upload_bytes_per_second: As in `salf.deadline`.

    Raises:
        InvalidSetting: An argument has a wrong type.
        UnsuitableModel: The model cannot be trained under a deadline; see `salf.deadline`.
    """
    check_type("trainer", trainer, Trainer, "a transformers.Trainer")
    model = trainer.model
    check_type("trainer.model", model, nn.Module, "a model")

    def clip() -> None:
        if trainer.args.max_grad_norm > 0:
            trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)

    block = client.deadline(
        model,
        None,
        seconds,
        layers=layers,
        clock=clock,
        upload_bytes_per_second=upload_bytes_per_second,
        accumulate=trainer.args.gradient_accumulation_steps,
        before_step=clip,
    )
    block.ends_itself = True
    with block as work:
        stop = _StopInTime(block, work)
        trainer.add_callback(stop)
        try:
            yield work
        finally:
            trainer.remove_callback(stop)


class _StopInTime(TrainerCallback):
    """Tells the block the trainer's optimizer, and the trainer when the time is up."""

    def __init__(self, block: Deadline, work: Work) -> None:
        self._block, self._work = block, work

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: object
    ) -> TrainerControl:
        optimizer = named.get("optimizer")
        self._block.optimizer = optimizer if isinstance(optimizer, Optimizer) else None
        return self._stop_in_time(control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: object
    ) -> TrainerControl:
        return self._stop_in_time(control)

    on_substep_end = on_step_end

    def _stop_in_time(self, control: TrainerControl) -> TrainerControl:
        if self._work.time_is_up:
            control.should_training_stop = True
        return control
