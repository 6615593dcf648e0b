"""One training round on the server: valid replies enter the sum, and each other one is logged with its node."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from flwr.app import Message

from salf.aggregation import Aggregated, Aggregation, RobustAggregation
from salf.errors import InvalidUpdate
from salf.flower.server.deadlines import RoundTimes
from salf.flower.server.federation_record import RejectReason
from salf.flower.server.logger import log, warn_of_node
from salf.flower.server.update_validator import UpdateValidator
from salf.flower.wire import ClientReply, ClientReport, Metrics, read_reply

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
        row.reached = np.array([read.update.conveys(layer) for layer in self._validator.layers])
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
