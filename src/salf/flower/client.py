"""The client's two lines: a deadline around the training loop, and the reply."""

import math
import time
from collections.abc import Mapping
from numbers import Real

from flwr.app import ArrayRecord, Message, RecordDict
from torch import nn
from torch.optim import Optimizer

from salf import client
from salf.client import Deadline, Scaler, Work
from salf.errors import InvalidSetting
from salf.flower.wire import NUM_EXAMPLES, PREFIX, ClientReport, TrainInstructions, write_reply

_NO_TIME = 1e-6  # seconds: less than any layer takes, for a client whose time was up before its loop began


def deadline(
    message: Message,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    scaler: Scaler | None = None,
    accumulate: int | None = None,
) -> Deadline:
    """Give the training loop in a `with` block the time that the round's message says; see `salf.deadline`.

    What a node has already spent of the round, on starting a process, on loading data, on receiving the model, counts
    where the server says so (it does by default); that takes clocks that agree, on the server and on the node. Time for
    sending the update is kept in hand at the rate that earlier replies of this node were observed to travel. A client
    whose time is up before its loop begins conveys nothing.

    Raises `InvalidSetting` for a message without an order, and what `salf.deadline` raises.
    """
    order = TrainInstructions.read(message)
    left = order.deadline_seconds - _elapsed(message, order)
    return client.deadline(
        model,
        optimizer,
        max(left, _NO_TIME),
        layers=order.layers,
        upload_bytes_per_second=order.upload_bytes_per_second,
        scaler=scaler,
        accumulate=accumulate,
    )


def reply(message: Message, work: Work, *, num_examples: int, metrics: Mapping[str, float] | None = None) -> Message:
    """Return the reply to `message`: the layers that `work` finished, `num_examples`, and the user's own `metrics`.

    Call it after the block and before anything else writes to the model. Raises `InvalidSetting` for wrong arguments.
    """
    order = TrainInstructions.read(message)
    own = dict(metrics or {})
    for key, value in own.items():
        if key.startswith(PREFIX) or key == NUM_EXAMPLES:
            raise InvalidSetting(f"metrics holds '{key}', a name that salf uses itself; choose another")
        given: object = value
        if isinstance(given, bool) or not isinstance(given, Real) or not math.isfinite(value):
            raise InvalidSetting(f"metrics['{key}'] is {value!r}; give a finite number, such as loss.item()")
    update = work.update(num_examples)
    spent = _elapsed(message, order) if order.counted_from == "message" else work.seconds
    told = ClientReport(order.round, spent, max(0.0, spent - order.deadline_seconds), work.interrupted)
    key, received = _received(message)
    arrays, record = write_reply(update, told, order.layers, received, own, whole=order.whole)
    return Message(RecordDict({key: arrays, "metrics": record}), reply_to=message)


def _elapsed(message: Message, order: TrainInstructions) -> float:
    """Return the seconds since the server made the message, by the node's own clock; 0 where they do not count."""
    return max(0.0, time.time() - message.metadata.created_at) if order.counted_from == "message" else 0.0


def _received(message: Message) -> tuple[str, ArrayRecord]:
    records = message.content.array_records
    if len(records) != 1:
        raise InvalidSetting(
            f"the round's message holds {len(records)} array records, but a client trains one model; "
            "let the strategy send one"
        )
    return next(iter(records.items()))
