"""One training round on the server: replies come in, honest ones enter the model, the others are told by name."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import Message
from torch import Tensor

from salf.aggregation import Aggregated, ClippedLayers
from salf.errors import InvalidUpdate
from salf.flower.server.deadlines import RoundTimes
from salf.flower.server.plausibility import Plausibility
from salf.flower.server.record import RejectReason
from salf.flower.wire import ClientReport, Reply, one_line, read_reply
from salf.layers import Layers
from salf.update import Update, check_names, check_update

log = logging.getLogger("flwr.salf")  # below Flower's own logger, whose handlers it uses

_RATE_FROM_BYTES = 2**18  # what is smaller measures how long a message takes to be noticed, not how fast it travels


class Collector(Protocol):
    """What updates are added to as they arrive."""

    def add(self, update: Update, position: int | None = None, *, checked: bool = False) -> None:
        """Add one client's update, of which the caller may know that `check_update` accepts it."""
        ...

    def finish(self, num_clients: int | None = None) -> Aggregated:
        """Return the new state."""
        ...


class UpdateValidator:
    """What a reply must satisfy: to fit `state` and `layers`, to change them plausibly, and to be clipped if asked."""

    def __init__(
        self, layers: Layers, state: Mapping[str, Tensor], max_change: float, clipping: ClippedLayers | None = None
    ) -> None:
        self.layers, self.state = layers, state
        self._plausibility, self._clipping = Plausibility(layers, state, max_change), clipping

    def admit(self, update: Update) -> Update:
        """Return the update as it may enter the model. Raises `InvalidUpdate`, which lists every problem."""
        check_names(update, self.layers)  # whose shapes and types are right as soon as it could be read
        try:
            self._plausibility.check(update)
        except InvalidUpdate:
            check_update(update, self.layers, self.state)  # says more of values that are not even finite
            raise
        return update if self._clipping is None else self._clipping.clip(update, self.layers)


@dataclass(eq=False)
class Row:
    """One asked client: which layers its reply conveyed, and what it told."""

    node: int
    answered: bool = False
    reached: npt.NDArray[np.bool_] | None = None
    told: ClientReport = field(default_factory=ClientReport)
    seconds: float | None = None
    num_bytes: int = 0
    num_examples: int = 0
    metrics: Mapping[str, float | list[float]] | None = None


class TrainingRound:
    """Round `number`, in which the `nodes` were asked: a row for each, in the order of the rows of the rule's reach."""

    def __init__(self, number: int, nodes: Sequence[int], admission: UpdateValidator, running: Collector) -> None:
        self.number = number
        self.rows = [Row(node) for node in nodes]
        self.reject_counts: Counter[RejectReason] = Counter()
        self._admission, self._running = admission, running
        self._by_message: dict[str, int] = {}

    def sent(self, identities: Mapping[str, int]) -> None:
        """Note under which identities the messages went to which nodes."""
        places = {row.node: place for place, row in enumerate(self.rows)}
        self._by_message = {identity: places[node] for identity, node in identities.items()}

    def take(self, reply: Message, seconds: float | None) -> None:
        """Take a reply that came `seconds` after the round began (None: unknown); whatever it is, nothing is raised."""
        place = self._by_message.get(reply.metadata.reply_to_message_id)
        if place is None:
            self._report("unknown", reply.metadata.src_node_id, "it replies to no message of this round")
            return
        row = self.rows[place]
        if row.answered:
            self._report("duplicate", row.node, "it has replied before")
            return
        row.answered = True
        if reply.has_error():
            self._report("failed", row.node, f"error {reply.error.code}: {reply.error.reason}")
        else:
            self._admit(reply, place, seconds)

    def _admit(self, reply: Message, place: int, seconds: float | None) -> None:
        row = self.rows[place]
        try:
            read = read_reply(reply.content, self._admission.layers, self._admission.state)
            if read.told.round not in (None, self.number):
                self._report("wrong-round", row.node, f"it answers round {read.told.round}")
                return
            update = self._admission.admit(read.update)
            self._running.add(update, place, checked=True)
        except InvalidUpdate as error:
            self._report("invalid", row.node, str(error))
            return
        self._accept(row, read, seconds)

    def _accept(self, row: Row, read: Reply, seconds: float | None) -> None:
        row.reached = np.array([read.update.conveys(layer) for layer in self._admission.layers])
        row.told = read.told if seconds is None else read.told.within(seconds)
        row.seconds, row.num_bytes = seconds, read.num_bytes
        row.num_examples, row.metrics = read.update.num_examples, read.metrics

    def late(self, reply: Message) -> None:
        """Note a reply to a message of the round before."""
        if reply.has_content():
            self._report("late", reply.metadata.src_node_id, "it came after its round had ended")

    def close(self) -> Aggregated:
        """End the round: who has not replied is missing. Return the new state."""
        for row in self.rows:
            if not row.answered:
                self._report("missing", row.node, "no reply in time")
        result = self._running.finish(len(self.rows) or None)
        for name in result.overflowed:
            log.warning("round %d: layer '%s' stays, its sum is out of the range of its type", self.number, name)
        return result

    def _report(self, trouble: RejectReason, node: int, reason: str) -> None:
        self.reject_counts[trouble] += 1
        log.warning("round %d: node %d: %s: %s", self.number, node, trouble, one_line(reason))

    def reached(self) -> npt.NDArray[np.bool_]:
        """Return which layers each asked client conveyed, shape (clients, layers)."""
        nothing = np.zeros(len(self._admission.layers), dtype=np.bool_)
        rows = [nothing if row.reached is None else row.reached for row in self.rows]
        return np.array(rows, dtype=np.bool_).reshape(len(self.rows), len(self._admission.layers))

    def times(self, deadline_seconds: float) -> RoundTimes:
        """Return how long the clients took; one of whom nobody knows took the whole deadline."""
        reached = self.reached()
        known = [
            (row.told.elapsed_seconds, row.seconds, deadline_seconds)
            for row, layers in zip(self.rows, reached, strict=True)
            if layers.all() and not row.told.interrupted
        ]
        whole = [next(seconds for seconds in each if seconds is not None) for each in known]
        share = float(reached.mean()) if reached.size else 0.0
        return RoundTimes(deadline_seconds, tuple(whole), len(self.rows) - len(whole), share, self.number)

    def upload_rates(self) -> dict[int, float]:
        """Return at how many bytes per second the replies came, by node, where they were large enough to tell."""
        return {
            row.node: row.num_bytes / (row.seconds - row.told.elapsed_seconds)
            for row in self.rows
            if row.num_bytes >= _RATE_FROM_BYTES
            and row.seconds is not None
            and row.told.elapsed_seconds is not None
            and row.seconds > row.told.elapsed_seconds
        }

    def overshoot(self) -> float | None:
        """Return by how many seconds the latest client outlasted its deadline; None if nobody told."""
        told = [row.told.overshoot_seconds for row in self.rows if row.told.overshoot_seconds is not None]
        return max(told, default=None)
