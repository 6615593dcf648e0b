"""Grids that fail now and then, and nodes that send malformed messages."""

import logging
from collections.abc import Iterable

import pytest
from flower_cases import MemoryGrid, a_loop, a_model, initial, inner, sending, wrapped
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from google.protobuf.message import DecodeError
from hypothesis import given, settings, strategies as st

from salf.flower.server.exchange import Exchange

MODEL, LAYERS = a_model()
HOSTILE = 2


class DecodingGrid(MemoryGrid):
    """Takes replies from the wire, as a deployment does: what is fetched is gone, even if decoding it fails."""

    damage = staticmethod(lambda content: content)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._decoded(reply) for reply in super().pull_messages(message_ids)]

    def _decoded(self, reply: Message) -> Message:
        objects = get_all_nested_objects(reply)
        contents = {identity: each.deflate() for identity, each in objects.items()}
        if reply.metadata.src_node_id == HOSTILE:
            contents = {identity: type(self).damage(content) for identity, content in contents.items()}
        return inflate_object_from_contents(reply.object_id, contents)  # type: ignore[return-value]


def test_a_malformed_message_is_logged_and_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """The first one costs the replies that were fetched with it; later ones cost no other reply."""

    class Grid(DecodingGrid):
        damage = staticmethod(lambda content: content[: len(content) // 2])

    nodes = {node: sending(3, after=1.0 + node / 100, seed=node) for node in (1, HOSTILE, 3)}
    with caplog.at_level(logging.WARNING, "flwr.salf"):
        result = a_loop(Grid(nodes), wrapped(inner(3), LAYERS)).run(initial(MODEL), 3)
    counted = [result.train_metrics_clientapp[number]["salf-contributors"] for number in (1, 2, 3)]
    assert counted[1:] == [[2, 2, 2]] * 2
    for number in (2, 3):
        assert result.train_metrics_clientapp[number]["salf-failed"] == 1
        assert f"round {number}: node {HOSTILE}: failed: error 4: its reply is malformed" in caplog.text


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_damaged_message_ends_a_round(data: st.DataObject) -> None:
    class Grid(DecodingGrid):
        @staticmethod
        def damage(content: bytes) -> bytes:
            place = data.draw(st.integers(0, max(len(content) - 1, 0)))
            return content[:place] + data.draw(st.binary(max_size=30)) + content[place + data.draw(st.integers(0, 3)) :]

    grid = Grid({1: sending(3, after=0.5), HOSTILE: sending(3, after=1.0)})
    result = a_loop(grid, wrapped(inner(2), LAYERS)).run(initial(MODEL), 1)
    assert result.train_metrics_clientapp[1]["salf-depths"] in ([1, 0, 0, 1], [0, 0, 0, 2], [2, 0, 0, 0])


@pytest.mark.parametrize("error", [KeyError("Messages"), ValueError("no JSON"), DecodeError("truncated")])
def test_a_reply_that_cannot_be_fetched_is_an_error_reply(error: Exception) -> None:
    class Grid(MemoryGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            identities = list(message_ids)
            if "message-1" in identities:
                raise error
            return super().pull_messages(identities)

    loop = a_loop(Grid({node: sending(3, after=0.0) for node in (1, 2, 3)}), wrapped(inner(3), LAYERS))
    metrics = loop.run(initial(MODEL), 1).train_metrics_clientapp[1]
    assert (metrics["salf-contributors"], metrics["salf-failed"]) == ([2, 2, 2], 1)


def test_a_round_ends_in_time_even_if_fetching_replies_is_slow() -> None:
    """Ten replies arrive at the last moment and are fetched one by one; those fetched in time count."""

    class Grid(MemoryGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            self.clock.sleep(0.2)
            return super().pull_messages(message_ids)

    nodes = {node: sending(3, after=14.9, seed=node) for node in range(1, 11)}
    loop = a_loop(Grid(nodes), wrapped(inner(10), LAYERS, deadline=10.0, grace_seconds=5.0))
    loop.exchange._one_by_one = True
    metrics = loop.run(initial(MODEL), 1).train_metrics_clientapp[1]
    fetched = metrics["salf-contributors"]
    assert isinstance(fetched, list)
    assert 1 <= fetched[0] < 10
    assert metrics["salf-missing"] == 10 - fetched[0]
    assert isinstance(seconds := metrics["salf-seconds"], float)
    assert 15.0 <= seconds <= 15.0 + 0.25 + 2 * 0.2  # a poll, the fetch that was under way, and a look for late ones


def test_losing_the_superlink_is_no_reply() -> None:
    class Grid(MemoryGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        a_loop(Grid({1: sending(3), 2: sending(3)}), wrapped(inner(2), LAYERS)).run(initial(MODEL), 1)


@pytest.mark.parametrize("absent", ["left out", "None"])
def test_a_message_that_cannot_be_sent_shifts_no_other(absent: str) -> None:
    class Grid(MemoryGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            identities = list(super().push_messages(messages))
            return identities[1:] if absent == "left out" else [None, *identities[1:]]  # type: ignore[list-item]

    grid = Grid({node: sending(3) for node in (5, 6, 7)})
    loop = a_loop(grid, wrapped(inner(3), LAYERS))
    loop.run(initial(MODEL), 1)
    first, *others = [message.metadata.dst_node_id for message in grid.sent]
    assert Exchange(grid).push(grid.sent) == {f"message-{place + 4}": node for place, node in enumerate(others)}
    places = {node: place for place, node in enumerate(loop.server.state.nodes)}
    chance = loop.server.state.server.observed.probability([places[first], *(places[node] for node in others)])
    assert chance[0].max() < 1.0  # the client that got no message has sent nothing
    assert chance[1:].min() == 1.0
