"""Sending the messages of a round and taking the replies as they arrive, until a given time.

Flower's own `send_and_receive` polls a deployment every three seconds and returns all replies at the end.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Error, Message, MessageType, Metadata
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from salf.flower.server.federation_record import log

_SAMPLING_POLL_SECONDS = 1.0  # Flower's sampling sleeps so long before it looks for nodes again
_BATCH_BYTES = 32 * 2**20
# What decoding raises for a reply that Flower did not make; the loss of the SuperLink raises other errors.
_UNDECODABLE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, DecodeError)


@dataclass
class Exchange:
    """The messages and replies of a run, over one of Flower's grids.

    Args:
        grid: The grid that delivers the messages.
        poll_seconds: The time between two polls.
        clock: A function that returns seconds.
        sleep: A function that waits for a number of seconds.
    """

    grid: Grid
    poll_seconds: float = 0.25
    clock: Callable[[], float] = field(default=time.monotonic)
    sleep: Callable[[float], None] = field(default=time.sleep)
    _one_by_one: bool = field(default=False, init=False)

    def push(self, messages: Iterable[Message]) -> dict[str, int]:
        """Send messages and return the node of each by the message's id, in order.

        A message that could not be sent is left out.
        """
        sent = list(messages)
        identities = list(self.grid.push_messages(sent)) if sent else []
        # For a message that could not be sent, some grids return nothing and others None.
        nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
        return {identity: nodes[identity] for identity in identities if identity in nodes}

    def replies(self, identities: Iterable[str], until: float, reply_bytes: int) -> Iterator[Message]:
        """Yield replies as they arrive, until all have arrived or the time is up.

        Args:
            identities: The ids of the messages. Their order decides which replies are fetched last, and may be too
                late: pass them in the random order in which nodes were sampled.
            until: The time, by the clock, at which waiting ends. Fetching ends one poll later, even if replies wait.
            reply_bytes: The expected size of a reply. Only a few large replies are fetched at once, to save memory.
        """
        waiting = dict.fromkeys(identities)
        while waiting:
            is_last = self.clock() >= until
            for batch in self._batches(tuple(waiting), reply_bytes):
                for reply in self._fetch(batch):
                    waiting.pop(reply.metadata.reply_to_message_id, None)
                    yield reply
                if self.clock() >= until + self.poll_seconds:
                    return
            if is_last or not waiting:
                return
            self.sleep(max(0.0, min(self.poll_seconds, until - self.clock())))

    def sweep(self, identities: tuple[str, ...], reply_bytes: int) -> Iterator[Message]:
        """Yield the replies that have arrived so far, without waiting.

        Args:
            identities: The ids of the messages.
            reply_bytes: The expected size of a reply.
        """
        for batch in self._batches(identities, reply_bytes):
            yield from self._fetch(batch)

    def _batches(self, identities: tuple[str, ...], reply_bytes: int) -> Iterator[tuple[str, ...]]:
        """Yield the ids to fetch at once."""
        size = max(1, _BATCH_BYTES // max(1, reply_bytes))
        start = 0
        while start < len(identities):
            batch = identities[start : start + (1 if self._one_by_one else size)]
            yield batch
            start += len(batch)

    def _fetch(self, identities: tuple[str, ...]) -> list[Message]:
        """Fetch the replies to these messages; one that cannot be decoded becomes an error reply.

        Flower decodes replies while it fetches them. A malformed reply stops it half-way and costs the replies that
        were fetched with it. From then on, replies are fetched one by one.
        """
        try:
            return list(self.grid.pull_messages(list(identities)))
        except _UNDECODABLE as error:
            if len(identities) == 1:
                return [_undecodable(identities[0], error)]
        log.warning("a node sent a malformed message; from now on replies are fetched one by one")
        self._one_by_one = True
        return [reply for identity in identities for reply in self._fetch((identity,))]


def _undecodable(identity: str, error: Exception) -> Message:
    """Return an error reply, as Flower makes them, for a reply that Flower cannot decode."""
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
    reason = f"its reply is malformed ({type(error).__name__}: {error})"
    return make_message(metadata, error=Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason))


class NotEnoughNodes(Exception):
    """Too few nodes came online in the time of the round."""


class PatientGrid:
    """A grid that stops waiting for nodes; Flower's sampling would wait for them without an end.

    Args:
        exchange: The exchange whose grid does everything else.
        until: The time, by the exchange's clock, at which waiting ends.
    """

    def __init__(self, exchange: Exchange, until: float) -> None:
        self._exchange, self._grid, self._until = exchange, exchange.grid, until
        self._began = exchange.clock()

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are online.

        Raises:
            NotEnoughNodes: The sampling has waited already, and the next wait would end too late.
        """
        nodes = list(self._grid.get_node_ids())
        now = self._exchange.clock()
        has_waited = now - self._began >= _SAMPLING_POLL_SECONDS
        if has_waited and now + _SAMPLING_POLL_SECONDS > self._until:
            raise NotEnoughNodes(f"{len(nodes)} nodes are online")
        return nodes

    def __getattr__(self, name: str) -> object:
        """Return everything else from the grid itself."""
        return getattr(self._grid, name)
