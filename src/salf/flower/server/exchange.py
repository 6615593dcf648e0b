"""Sending a round's messages and taking the replies as they come, until a given moment and not longer.

Flower's own `send_and_receive` polls a deployment every three seconds and hands over all replies at the end.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Error, Message, MessageType, Metadata
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from google.protobuf.message import DecodeError

log = logging.getLogger("flwr.salf")

_SAMPLING_POLL_SECONDS = 1.0  # how long Flower's sampling sleeps before it looks for nodes again
_TOGETHER_BYTES = 32 * 2**20
# What decoding the objects of a reply raises when a node has not made them with Flower; losing the SuperLink is none.
_UNDECODABLE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, DecodeError)


@dataclass
class Exchange:
    """A grid, looked at every `poll_seconds`; `clock` returns seconds and `sleep` lets them pass."""

    grid: Grid
    poll_seconds: float = 0.25
    clock: Callable[[], float] = field(default=time.monotonic)
    sleep: Callable[[float], None] = field(default=time.sleep)
    _one_by_one: bool = field(default=False, init=False)

    def push(self, messages: Iterable[Message]) -> dict[str, int]:
        """Send messages; return the node of each by the message's id, in order. What cannot be sent has none."""
        sent = list(messages)
        identities = list(self.grid.push_messages(sent)) if sent else []
        # Grids differ in what they return for a message that could not be sent: nothing, or None in its place.
        nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
        return {identity: nodes[identity] for identity in identities if identity in nodes}

    def replies(self, identities: Iterable[str], until: float, reply_bytes: int) -> Iterator[Message]:
        """Yield the replies to these messages as they come, until all are there or the clock says `until`.

        Few of them are fetched together where a reply is large (`reply_bytes`), so that they never all wait in memory.
        However many replies wait, no more are asked for once a poll has passed since `until`; whose turn would have
        come is chance's matter, as long as `identities` are in the order in which nodes were sampled.
        """
        waiting = dict.fromkeys(identities)
        while waiting:
            is_last = self.clock() >= until
            for some in self._groups(tuple(waiting), reply_bytes):
                for reply in self._fetch(some):
                    waiting.pop(reply.metadata.reply_to_message_id, None)
                    yield reply
                if self.clock() >= until + self.poll_seconds:
                    return
            if is_last or not waiting:
                return
            self.sleep(max(0.0, min(self.poll_seconds, until - self.clock())))

    def sweep(self, identities: tuple[str, ...], reply_bytes: int) -> Iterator[Message]:
        """Yield the replies to these messages that are there now; one that cannot be decoded comes as an error."""
        for some in self._groups(identities, reply_bytes):
            yield from self._fetch(some)

    def _groups(self, identities: tuple[str, ...], reply_bytes: int) -> Iterator[tuple[str, ...]]:
        """Yield those that are fetched together."""
        together = max(1, _TOGETHER_BYTES // max(1, reply_bytes))
        start = 0
        while start < len(identities):
            some = identities[start : start + (1 if self._one_by_one else together)]
            yield some
            start += len(some)

    def _fetch(self, identities: tuple[str, ...]) -> list[Message]:
        """Fetch the replies to these messages.

        Flower decodes replies while it fetches them. What a node has sent instead of a message stops it half-way, and
        costs the replies that were fetched together with it: from then on they are fetched one by one.
        """
        try:
            return list(self.grid.pull_messages(list(identities)))
        except _UNDECODABLE as error:
            if len(identities) == 1:
                return [_unreadable(identities[0], error)]
        log.warning("a node has sent what is no message; from now on replies are fetched one by one")
        self._one_by_one = True
        return [reply for identity in identities for reply in self._fetch((identity,))]


def _unreadable(identity: str, error: Exception) -> Message:
    """Return what stands for a reply that Flower cannot decode, as Flower itself would put it."""
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=identity,
        group_id="",
        created_at=time.time(),
        ttl=0.0,
        message_type=MessageType.TRAIN,
    )
    reason = f"its reply is no message ({type(error).__name__}: {error})"
    return make_message(metadata, error=Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason))


class NotEnoughNodes(Exception):
    """Sampling has waited for nodes as long as the round allows."""


class PatientGrid(Grid):
    """A grid that gives up waiting for nodes: Flower's sampling asks for them until there are enough, without an end.

    `get_node_ids` raises `NotEnoughNodes` once sampling has waited and waiting again would last beyond `until`.
    """

    def __init__(self, exchange: Exchange, until: float) -> None:
        self._exchange, self._until = exchange, until
        self._began = exchange.clock()

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are online."""
        nodes = list(self._exchange.grid.get_node_ids())
        now = self._exchange.clock()
        has_waited = now - self._began >= _SAMPLING_POLL_SECONDS
        if has_waited and now + _SAMPLING_POLL_SECONDS > self._until:
            raise NotEnoughNodes(f"{len(nodes)} nodes are online")
        return nodes

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._exchange.grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._exchange.grid.run

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return what is known of the nodes."""
        return self._exchange.grid.get_nodes()

    def create_message(self, *arguments: object, **named: object) -> Message:
        """Create a message."""
        return self._exchange.grid.create_message(*arguments, **named)  # type: ignore[arg-type]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        return self._exchange.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fetch the replies that are there."""
        return self._exchange.grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and wait for their replies."""
        return self._exchange.grid.send_and_receive(messages, timeout=timeout)
