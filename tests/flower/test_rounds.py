"""A round accepts partial replies, ends in time, and ignores unusable replies."""

import logging
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from flower_cases import (
    Clock,
    MemoryGrid,
    a_loop,
    a_model,
    answer,
    initial,
    inner,
    sending,
    stock_answer,
    update_of,
    wrapped,
)
from flwr.app import ArrayRecord, ConfigRecord, Error, Message
from flwr.serverapp.strategy import FedAvg
from torch import nn

import salf
from salf.aggregation import Contributors, Corrected, Everyone, InverseProbability, Memory, Rule
from salf.flower import SalfStrategy
from salf.flower.wire import ClientReport, TrainInstructions
from salf.layers import find_layers
from salf.participation import ObservedReach


@pytest.mark.parametrize("rule", [Corrected(), Contributors(), Everyone(), Corrected(weight_by_examples=True)])
def test_a_round_gives_what_aggregate_gives(rule: Rule) -> None:
    model, layers = a_model()
    depths = {5: 3, 6: 1, 7: 0, 8: 2}
    grid = MemoryGrid({node: sending(depth, seed=node, examples=node) for node, depth in depths.items()})
    result = a_loop(grid, wrapped(inner(4), layers, rule=rule)).run(initial(model), 1)
    state = model.state_dict()
    order = [message.metadata.dst_node_id for message in grid.sent]
    updates = [update_of(depths[node], layers, state, node, node) for node in order]
    expected = salf.aggregate(state, updates, layers, rule, reach=np.ones((4, 3)))
    for name, value in result.arrays.to_torch_state_dict().items():
        torch.testing.assert_close(value, expected.state[name], rtol=1e-5, atol=1e-6)
    metrics = result.train_metrics_clientapp[1]
    assert metrics["salf-contributors"] == [1, 2, 3]
    assert metrics["salf-depths"] == [1, 1, 1, 1]


def test_reach_is_observed_and_corrects_later_rounds() -> None:
    model, layers = a_model()
    grid = MemoryGrid({node: sending(3 if node == 1 else 1, seed=node) for node in (1, 2)})
    loop = a_loop(grid, wrapped(inner(2), layers))
    loop.run(initial(model), 3)
    observed = loop.server.state.server.observed
    places = {node: place for place, node in enumerate(loop.server.state.nodes)}
    chance = observed.probability([places[1], places[2]])
    assert chance[0].tolist() == [1.0, 1.0, 1.0]
    assert chance[1, 2] == 1.0
    assert chance[1, 0] < 0.4


@pytest.mark.parametrize("rule", [Corrected(), Everyone(), InverseProbability(), Memory()])
def test_rounds_give_what_aggregate_gives_one_after_another(rule: Rule) -> None:
    model, layers = a_model()
    depths = (3, 2, 1)
    grid = MemoryGrid({2**63 + node: sending(depth, seed=node) for node, depth in enumerate(depths)})
    loop = a_loop(grid, wrapped(inner(3), layers, rule=rule))
    made = loop.run(initial(model), 4).arrays.to_torch_state_dict()
    assert loop.server.state.server.round == 4
    state, seen, memory = dict(model.state_dict()), ObservedReach(len(layers)), None
    for _ in range(4):
        updates = [update_of(depth, layers, state, node, 10) for node, depth in enumerate(depths)]
        reach = seen.probability([0, 1, 2])
        result = salf.aggregate(state, updates, layers, rule, reach=reach, clients=[0, 1, 2], memory=memory)
        state, memory = result.state, result.memory
        seen = seen.observe([0, 1, 2], [[layer >= 3 - depth for layer in range(3)] for depth in depths])
    for name, value in state.items():
        torch.testing.assert_close(made[name], value, rtol=1e-5, atol=1e-6)


def test_a_round_ends_when_all_clients_have_replied_or_at_deadline_plus_grace() -> None:
    model, layers = a_model()
    quick = MemoryGrid({1: sending(3, after=2.0), 2: sending(3, after=3.1)})
    a_loop(quick, wrapped(inner(2), layers)).run(initial(model), 1)
    assert 3.1 <= quick.clock() - 100 <= 3.1 + 0.25
    late = MemoryGrid({1: sending(3, after=2.0), 2: sending(3, after=15.5)})
    result = a_loop(late, wrapped(inner(2), layers, grace_seconds=4.0)).run(initial(model), 1)
    assert 14.0 <= late.clock() - 100 <= 14.0 + 0.25
    assert result.train_metrics_clientapp[1]["salf-missing"] == 1
    assert result.train_metrics_clientapp[1]["salf-contributors"] == [1, 1, 1]


def test_messages_expire_with_their_round_and_name_it() -> None:
    model, layers = a_model()
    grid = MemoryGrid({1: sending(3), 2: sending(3)})
    a_loop(grid, wrapped(inner(2), layers, deadline=7.0, grace_seconds=2.0)).run(initial(model), 2)
    assert [message.metadata.ttl for message in grid.sent] == [9.0] * 4
    assert [message.metadata.group_id for message in grid.sent] == ["1", "1", "2", "2"]
    assert [TrainInstructions.read(message).round for message in grid.sent] == [1, 1, 2, 2]


def test_a_late_reply_is_logged_in_the_next_round_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model, layers = a_model()
    twin = a_loop(MemoryGrid({1: sending(3), 2: lambda _: ()}), wrapped(inner(2), layers))
    grid = MemoryGrid(
        {1: sending(3), 2: lambda message: [(16.0, answer(message, update_of(3, layers, model.state_dict())))]}
    )
    with caplog.at_level(logging.WARNING, "flwr.salf"):
        result = a_loop(grid, wrapped(inner(2), layers)).run(initial(model), 2)
    assert result.arrays == twin.run(initial(model), 2).arrays
    assert result.train_metrics_clientapp[2]["salf-late"] == 1
    assert "node 2: late" in caplog.text


@pytest.mark.parametrize("reason", ["duplicate", "wrong-round", "failed", "unknown"])
def test_unusable_replies_are_logged_and_change_nothing(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    model, layers = a_model()
    state = model.state_dict()
    hostile = update_of(3, layers, state, seed=99)

    def node(message: Message) -> Iterable[tuple[float, Message]]:
        honest = answer(message, update_of(2, layers, state, seed=2))
        if reason == "duplicate":
            return [(1.0, honest), (1.0, answer(message, hostile))]
        if reason == "wrong-round":
            return [(1.0, answer(message, hostile, ClientReport(7, 1.0, 0.0, interrupted=False)))]
        if reason == "failed":
            return [(1.0, Message(Error(code=3, reason="out of memory"), reply_to=message))]
        stray = answer(message, hostile)
        stray.metadata.__dict__["_reply_to_message_id"] = "no message"
        return [(1.0, honest), (1.0, stray)]

    honest_too = reason in ("duplicate", "unknown")
    grid = MemoryGrid({1: sending(3, seed=1), 2: node})
    twin = MemoryGrid({1: sending(3, seed=1), 2: sending(2, seed=2) if honest_too else lambda _: ()})
    with caplog.at_level(logging.WARNING, "flwr.salf"):
        result = a_loop(grid, wrapped(inner(2), layers)).run(initial(model), 1)
    expected = a_loop(twin, wrapped(inner(2), layers)).run(initial(model), 1)
    for name, value in result.arrays.to_torch_state_dict().items():
        torch.testing.assert_close(value, expected.arrays.to_torch_state_dict()[name])
    assert f"{reason}:" in caplog.text
    counted = result.train_metrics_clientapp[1]["salf-failed" if reason == "failed" else "salf-rejected"]
    assert counted == 1


def test_a_client_without_salf_counts_with_its_whole_model() -> None:
    model, layers = a_model()
    changed = {name: value + 1 for name, value in model.state_dict().items()}
    grid = MemoryGrid({node: lambda message: [(1.0, stock_answer(message, ArrayRecord(changed)))] for node in (1, 2)})
    result = a_loop(grid, wrapped(inner(2), layers)).run(initial(model), 1)
    for name, value in result.arrays.to_torch_state_dict().items():
        torch.testing.assert_close(value, changed[name])


def test_a_round_without_enough_nodes_ends_too() -> None:
    model, layers = a_model()
    grid = MemoryGrid({1: sending(3)})
    strategy = wrapped(inner(2), layers, deadline=1.5, grace_seconds=1.0)
    result = SalfStrategy.start(strategy, grid, initial(model), num_rounds=1)
    metrics = result.train_metrics_clientapp[1]
    assert metrics["salf-depths"] == [0, 0, 0, 0]
    assert isinstance(metrics["salf-seconds"], float)
    assert metrics["salf-seconds"] <= 2.5 + 0.25
    assert result.arrays == initial(model)
    assert not grid.sent


def test_waiting_for_nodes_shortens_the_round() -> None:
    model, layers = a_model()
    clock = Clock()
    grid = MemoryGrid({1: sending(3), 2: sending(3)}, clock)

    class Slow(FedAvg):
        def configure_train(self, *arguments: object) -> Iterable[Message]:
            clock.sleep(4.0)
            return super().configure_train(*arguments)  # type: ignore[arg-type]

    strategy = wrapped(Slow(fraction_evaluate=0.0), layers, deadline=10.0)
    a_loop(grid, strategy).run(initial(model), 1)
    assert [TrainInstructions.read(message).deadline_seconds for message in grid.sent] == [6.0, 6.0]


def test_the_flower_interface_gives_the_same_as_start() -> None:
    model, layers = a_model()
    nodes = {node: sending(node % 4, seed=node) for node in (1, 2, 3)}
    expected = a_loop(MemoryGrid(nodes), wrapped(inner(3), layers)).run(initial(model), 2)
    strategy = wrapped(inner(3), layers)
    arrays, grid = initial(model), MemoryGrid(nodes)
    for number in (1, 2):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        made, metrics = strategy.aggregate_train(number, grid.send_and_receive(messages, timeout=5.0))
        assert made is not None
        assert metrics is not None
        arrays = made
    for name, value in arrays.to_torch_state_dict().items():
        torch.testing.assert_close(value, expected.arrays.to_torch_state_dict()[name])


def test_a_layer_that_too_few_clients_sent_stays() -> None:
    model, layers = a_model()
    grid = MemoryGrid({1: sending(3, seed=1), 2: sending(1, seed=2), 3: sending(0)})
    strategy = wrapped(inner(3), layers, rule=Corrected(min_contributors=2))
    result = a_loop(grid, strategy).run(initial(model), 1)
    before, after = model.state_dict(), result.arrays.to_torch_state_dict()
    assert result.train_metrics_clientapp[1]["salf-contributors"] == [1, 1, 2]
    for layer, moves in zip(layers, (False, False, True), strict=True):
        for name in (*layer.parameters, *layer.buffers):
            assert torch.equal(before[name], after[name]) is not moves


def test_reported_times_are_limited_by_the_servers_clock() -> None:
    model, layers = a_model()

    def boasting(seconds: float) -> object:
        def node(message: Message) -> Iterable[tuple[float, Message]]:
            report = ClientReport(TrainInstructions.read(message).round, seconds, seconds, interrupted=False)
            return [(2.0, answer(message, update_of(3, layers, model.state_dict()), report))]

        return node

    grid = MemoryGrid({1: boasting(1e300), 2: boasting(-1e300), 3: boasting(1.5)})  # type: ignore[dict-item]
    loop = a_loop(grid, wrapped(inner(3), layers))
    result = loop.run(initial(model), 1)
    [times] = loop.server.state.times
    assert sorted(times.whole) == [0.0, 1.5, 2.0]
    assert result.train_metrics_clientapp[1]["salf-overshoot-s"] == 2.0


@pytest.mark.parametrize(("counted_from", "known"), [("message", True), ("loop", False)])
def test_the_upload_rate_of_a_node_is_observed_and_sent_to_it(counted_from: str, known: bool) -> None:
    """A reply made after 3 s that arrives after 5 s travelled for 2 s; the time of the loop alone says nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 4))
    layers = find_layers(model)

    def node(message: Message) -> Iterable[tuple[float, Message]]:
        report = ClientReport(TrainInstructions.read(message).round, 3.0, 0.0, interrupted=False)
        return [(5.0, answer(message, update_of(2, layers, model.state_dict()), report))]

    grid = MemoryGrid({1: node, 2: sending(0)})
    strategy = wrapped(inner(2), layers, deadline=60.0, counted_from=counted_from)
    a_loop(grid, strategy).run(initial(model), 2)
    instructions = {(m.metadata.group_id, m.metadata.dst_node_id): TrainInstructions.read(m) for m in grid.sent}
    assert instructions["1", 1].upload_bytes_per_second is None
    assert instructions["2", 2].upload_bytes_per_second is None
    size = sum(len(array.data) for array in initial(model).values())
    assert instructions["2", 1].upload_bytes_per_second == (pytest.approx(size / 2.0) if known else None)


def test_a_low_upload_rate_leaves_half_of_the_deadline_for_training() -> None:
    model, layers = a_model()
    loop = a_loop(MemoryGrid({}), wrapped(inner(1), layers, deadline=10.0))
    loop.server.begin(model.state_dict())
    loop.server.resume(replace(loop.server.state, upload_rates={1: 1e-3}))
    grid = MemoryGrid({1: sending(3)})
    [message] = loop.server.open_round(1, initial(model), ConfigRecord(), grid, 10.0)
    size = sum(len(array.data) for array in initial(model).values())
    assert TrainInstructions.read(message).upload_bytes_per_second == pytest.approx(2 * size / 10.0)
