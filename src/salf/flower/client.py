"""The client's two lines: a deadline around the training loop, and the reply.

The time that a node spends before its loop (starting a process, receiving the model, loading data) counts, unless the
strategy has `counted_from="loop"`. That requires clocks on the server and the node that agree. The block reserves time
for the upload, at the rate observed for this node's earlier replies. A client whose deadline passed before its loop
began sends no layer.
"""

import math
import time
from collections.abc import Callable, Mapping
from numbers import Real

from flwr.app import ArrayRecord, Message, RecordDict
from torch import nn
from torch.optim import Optimizer

from salf import client
from salf.client import Deadline, Scaler, Work
from salf.errors import InvalidSetting, shown
from salf.flower.wire import NUM_EXAMPLES, PREFIX, ClientReport, TrainInstructions, write_reply

_NO_TIME = 1e-6  # seconds: less than any layer takes, for a client whose deadline passed before its loop


def deadline(
    message: Message,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    scaler: Scaler | None = None,
    accumulate: int | None = None,
    before_step: Callable[[], object] | None = None,
) -> Deadline:
    """End the training loop in a `with` block at the deadline of the round.

    Args:
        message: The server's message, which a `SalfStrategy` configured.
        model: The model to train, with the message's weights.
        optimizer: The optimizer of the model's parameters; not needed by a loop over `work.batches(loader)`.
        scaler: The gradient scaler of mixed precision, as in `salf.deadline`.
        accumulate: The number of backward passes per step, as in `salf.deadline`.
        before_step: A function to call before the block's own last step, as in `salf.deadline`.

    Raises:
        InvalidSetting: The message has no deadline.
        UnsuitableModel: The model cannot be trained layer by layer; see `salf.deadline`.

    >>> import salf.flower
    >>> def train_model(message, context):  # the @app.train() function of Flower's ClientApp
    ...     with salf.flower.deadline(message, model) as work:
    ...         loss = train(model, work.batches(loader))  # a training function that returns its mean loss
    ...     return salf.flower.reply(message, work, num_examples=1000, metrics={"loss": loss})
    """
    instructions = TrainInstructions.read(message)
    seconds = max(instructions.deadline_seconds - _elapsed(message, instructions), _NO_TIME)
    layers, rate = instructions.layers, instructions.upload_bytes_per_second
    return client.deadline(
        model,
        optimizer,
        seconds,
        layers=layers,
        upload_bytes_per_second=rate,
        scaler=scaler,
        accumulate=accumulate,
        before_step=before_step,
    )


def reply(message: Message, work: Work, *, num_examples: int, metrics: Mapping[str, float] | None = None) -> Message:
    """Return the reply to the round's message: the finished layers and the client's metrics.

    Call it after the block of `deadline`, whose example shows both, and before anything else changes the model.

    Args:
        message: The server's message.
        work: The value of the `with` block.
        num_examples: The size of the client's data set, at least 1.
        metrics: The user's own metrics: finite numbers, by names that do not begin with `salf-`.

    Raises:
        InvalidSetting: A metric has a reserved name or is not a finite number, or the message has no deadline or more
            than one model.
    """
    instructions = TrainInstructions.read(message)
    own = dict(metrics or {})
    _check_metrics(own)
    update = work.update(num_examples)
    seconds = _elapsed(message, instructions) if instructions.counted_from == "message" else work.seconds
    overshoot = max(0.0, seconds - instructions.deadline_seconds)
    report = ClientReport(instructions.round, seconds, overshoot, work.interrupted)
    key, received = _received_model(message)
    arrays, record = write_reply(update, report, instructions.layers, received, own, whole=instructions.whole)
    return Message(RecordDict({key: arrays, "metrics": record}), reply_to=message)


def _check_metrics(metrics: Mapping[str, object]) -> None:
    for key, value in metrics.items():
        if key.startswith(PREFIX) or key == NUM_EXAMPLES:
            raise InvalidSetting(f"metrics has the key '{key}', which salf uses itself; choose another name")
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise InvalidSetting(f"metrics['{key}'] is {shown(value)}; pass a finite number, such as loss.item()")


def _elapsed(message: Message, instructions: TrainInstructions) -> float:
    """Return the seconds since the server made the message, by the node's clock; 0 if only the loop counts."""
    if instructions.counted_from == "loop":
        return 0.0
    return max(0.0, time.time() - message.metadata.created_at)


def _received_model(message: Message) -> tuple[str, ArrayRecord]:
    """Return the message's one array record, with its name."""
    records = message.content.array_records
    if len(records) != 1:
        raise InvalidSetting(
            f"the round's message has {len(records)} array records, but a client trains one model; "
            "use a strategy that sends one"
        )
    return next(iter(records.items()))
