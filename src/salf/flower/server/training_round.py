"""One training round on the server: valid replies enter the sum, and each other one is logged with its node."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Message
from torch import Tensor

from salf.aggregation import Aggregated, Aggregation, ClippedLayers, RobustAggregation, norm_of
from salf.errors import InvalidUpdate
from salf.flower.server.deadlines import RoundTimes
from salf.flower.server.federation_record import RejectReason, log, warn_of_node
from salf.flower.wire import ClientReply, ClientReport, Metrics, read_reply
from salf.layers import Layers, is_unchanged, must_not_change
from salf.update import Update, check_names, check_update

# Running statistics follow the scale of the data, which has no bound; beyond this limit they are no statistics.
_BUFFER_LIMIT = 1e6
_COUNTER_LIMIT = 2**40


class UpdateValidator:
    """The check of the updates of one round against the model that was sent.

    In the root mean square, a layer may change by `max_change` times its weights, or by `max_change` if these are
    smaller than 1. A statistic may reach a million times its old value, or a million. A counter may grow by 2^40. A
    variance cannot be negative. Other buffers must not change.

    Args:
        layers: The layers of the model.
        state: The global model that was sent.
        max_change: The limit on the change of a layer, greater than 0.
        clipping: A bound on the norm of each layer's change, applied to updates that pass.

    >>> from salf import Layer
    >>> layers = Layers((Layer("head", ("weight",)),))
    >>> validator = UpdateValidator(layers, {"weight": torch.zeros(2)}, max_change=10.0)
    >>> validator.validate(Update({"weight": torch.ones(2)}, 1, 5)).num_examples
    5
    >>> validator.validate(Update({"weight": torch.full((2,), 11.0)}, 1, 5))
    Traceback (most recent call last):
    salf.errors.InvalidUpdate: ...: layer 'head' changes by 11 on average, more than 10 times its weights
    """

    def __init__(
        self, layers: Layers, state: Mapping[str, Tensor], max_change: float, clipping: ClippedLayers | None = None
    ) -> None:
        self.layers, self.state = layers, state
        self._max_change, self._clipping = max_change, clipping
        self._usual = {
            layer.name: max(1.0, _root_mean_square([state[name] for name in layer.parameters])) for layer in layers
        }

    def validate(self, update: Update) -> Update:
        """Return an update as it may enter the model.

        Args:
            update: An update that `read_reply` returned: its shapes and types are right.

        Raises:
            InvalidUpdate: The update must not enter the model; the error lists every problem.
        """
        check_names(update, self.layers)
        problems = [*self._changes(update), *_buffers(update, self.layers, self.state)]
        if problems:
            check_update(update, self.layers, self.state)  # describes values that are not finite better
            raise InvalidUpdate(
                "this update cannot come from training; check the client's learning rate and data", problems
            )
        return update if self._clipping is None else self._clipping.clip(update, self.layers)

    def _changes(self, update: Update) -> Iterator[str]:
        """Yield the layers that change too much; values that are not finite have no norm within the limit."""
        for layer in self.layers:
            if not update.includes(layer):
                continue
            changed = _root_mean_square([update.deltas[name] for name in layer.parameters])
            if not (math.isfinite(changed) and changed <= self._max_change * self._usual[layer.name]):
                yield (
                    f"layer '{layer.name}' changes by {changed:.3g} on average, "
                    f"more than {self._max_change:g} times its weights"
                )


def _buffers(update: Update, layers: Layers, state: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the buffers that must not become what they are in an update; one that has not changed is fine."""
    for name, value in update.buffers.items():
        old = state[name]
        if is_unchanged(value, old):
            continue
        kind = layers.kind_of(name, old)
        if kind == "statistic":
            yield from _statistic(name, value, old)
        elif kind != "counter":
            yield f"buffer '{name}' has changed, {must_not_change(name, kind)}"
        elif not 0 <= int(value.max()) - int(old.max()) <= _COUNTER_LIMIT:
            yield f"counter '{name}' goes from {int(old.max())} to {int(value.max())}"


def _statistic(name: str, value: Tensor, old: Tensor) -> Iterator[str]:
    """Yield why a buffer is no statistic: too large, not finite, or a negative variance."""
    most = float(torch.where(value == old, 0, value).abs().max())
    usual = float(torch.where(old.isfinite(), old, 0).abs().max())
    if not (math.isfinite(most) and most <= _BUFFER_LIMIT * max(1.0, usual)):
        yield f"buffer '{name}' reaches {most:.3g}"
    elif name.endswith("running_var") and float(value.min()) < 0:
        yield f"'{name}' holds a negative variance"


def _root_mean_square(tensors: list[Tensor]) -> float:
    """Return the root mean square of several tensors' values; infinity or NaN if a value is not finite."""
    count = sum(tensor.numel() for tensor in tensors)
    norms = [float(torch.linalg.vector_norm(tensor)) for tensor in tensors]
    if math.inf in norms:  # the square of a finite number may overflow; double precision takes four times as long
        norms = [norm_of(tensor) for tensor in tensors]
    return math.hypot(*norms) / math.sqrt(max(count, 1))


_RATE_FROM_BYTES = 2**18  # the time of a smaller reply measures its discovery by the poll, not its upload
# What updates are added to as they arrive.
UpdateSum = Aggregation | RobustAggregation


@dataclass(eq=False)
class ClientRow:
    """One sampled client of a round.

    Attributes:
        node: The id of the client's node.
        answered: Whether a reply has arrived, valid or not.
        reached: Which layers the reply contains, shape (layers,); None without a valid reply.
        report: What the client reports.
        seconds: The time from the start of the round to the reply; None if it is unknown.
        num_bytes: The size of the reply's arrays.
        num_examples: The size of the client's data set.
        metrics: The client's own metrics.
    """

    node: int
    answered: bool = False
    reached: npt.NDArray[np.bool_] | None = None
    report: ClientReport = field(default_factory=ClientReport)
    seconds: float | None = None
    num_bytes: int = 0
    num_examples: int = 0
    metrics: Metrics | None = None

    def upload_rate(self) -> float | None:
        """Return the bytes per second at which the reply travelled; None if it is unknown or the reply is small."""
        elapsed = self.report.elapsed_seconds
        if self.num_bytes < _RATE_FROM_BYTES or self.seconds is None or elapsed is None or self.seconds <= elapsed:
            return None
        return self.num_bytes / (self.seconds - elapsed)


class TrainingRound:
    """The open training round.

    Args:
        number: The round's number, from 1.
        nodes: The ids of the sampled nodes, in the order of the rows of the rule's reach.
        validator: The check that replies must pass.
        update_sum: What valid updates are added to.
    """

    def __init__(self, number: int, nodes: Sequence[int], validator: UpdateValidator, update_sum: UpdateSum) -> None:
        self.number = number
        self.rows = [ClientRow(node) for node in nodes]
        self.reject_counts: Counter[RejectReason] = Counter()
        self._validator, self._sum = validator, update_sum
        self._positions: dict[str, int] = {}

    def sent(self, identities: Mapping[str, int]) -> None:
        """Note the messages that were sent: each one's id and node."""
        positions = {row.node: position for position, row in enumerate(self.rows)}
        self._positions = {identity: positions[node] for identity, node in identities.items()}

    def take(self, reply: Message, seconds: float | None) -> None:
        """Take a reply of any kind; nothing that it contains raises an error.

        Args:
            reply: The reply.
            seconds: The time since the round began; None if it is unknown.
        """
        position = self._positions.get(reply.metadata.reply_to_message_id)
        if position is None:
            self._reject("unknown", reply.metadata.src_node_id, "it replies to no message of this round")
            return
        row = self.rows[position]
        if row.answered:
            self._reject("duplicate", row.node, "it has replied before")
            return
        row.answered = True
        if reply.has_error():
            self._reject("failed", row.node, f"error {reply.error.code}: {reply.error.reason}")
        else:
            self._add(reply, position, seconds)

    def _add(self, reply: Message, position: int, seconds: float | None) -> None:
        """Add a reply to the sum if it is valid."""
        row, validator = self.rows[position], self._validator
        try:
            read = read_reply(reply.content, validator.layers, validator.state)
            if read.report.round not in (None, self.number):
                self._reject("wrong-round", row.node, f"it answers round {read.report.round}")
                return
            self._sum.add(validator.validate(read.update), position, checked=True)
        except InvalidUpdate as error:
            self._reject("invalid", row.node, str(error))
            return
        self._note(row, read, seconds)

    def _note(self, row: ClientRow, read: ClientReply, seconds: float | None) -> None:
        """Note what a valid reply contains, with its times limited by the server's clock."""
        row.reached = np.array([read.update.includes(layer) for layer in self._validator.layers])
        row.report = read.report if seconds is None else read.report.within(seconds)
        row.seconds, row.num_bytes = seconds, read.num_bytes
        row.num_examples, row.metrics = read.update.num_examples, read.metrics

    def late(self, reply: Message) -> None:
        """Count a reply to a message of the round before."""
        if reply.has_content():
            self._reject("late", reply.metadata.src_node_id, "it came after its round had ended")

    def close(self) -> Aggregated:
        """End the round and return the new global model; clients that have not replied are missing."""
        for row in self.rows:
            if not row.answered:
                self._reject("missing", row.node, "no reply in time")
        result = self._sum.finish(len(self.rows) or None)
        for name in result.overflowed:
            log.warning("round %d: layer '%s' stays, its sum exceeds the range of its type", self.number, name)
        return result

    def _reject(self, reason: RejectReason, node: int, explanation: str) -> None:
        self.reject_counts[reason] += 1
        warn_of_node(f"round {self.number}", node, f"{reason}: {explanation}")

    def reached(self) -> npt.NDArray[np.bool_]:
        """Return which layers each sampled client sent, shape (clients, layers)."""
        nothing = np.zeros(len(self._validator.layers), dtype=np.bool_)
        rows = [nothing if row.reached is None else row.reached for row in self.rows]
        return np.array(rows, dtype=np.bool_).reshape(len(self.rows), len(nothing))

    def times(self, deadline_seconds: float) -> RoundTimes:
        """Return how long the clients took; a client whose time is unknown took the whole deadline."""
        reached = self.reached()
        candidates = [
            (row.report.elapsed_seconds, row.seconds, deadline_seconds)
            for row, layers in zip(self.rows, reached, strict=True)
            if layers.all() and not row.report.interrupted
        ]
        whole = [next(seconds for seconds in each if seconds is not None) for each in candidates]
        share = float(reached.mean()) if reached.size else 0.0
        return RoundTimes(deadline_seconds, tuple(whole), len(self.rows) - len(whole), share, self.number)

    def upload_rates(self) -> dict[int, float]:
        """Return the bytes per second at which large replies travelled, by node."""
        return {row.node: rate for row in self.rows if (rate := row.upload_rate()) is not None}

    def overshoot(self) -> float | None:
        """Return by how many seconds the slowest client exceeded its deadline; None if no client reported it."""
        reported = [row.report.overshoot_seconds for row in self.rows]
        return max((seconds for seconds in reported if seconds is not None), default=None)
