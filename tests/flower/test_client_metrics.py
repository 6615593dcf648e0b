"""Metrics and evaluations: those of clients as one record, even if some clients send others."""

import logging
from collections.abc import Iterable
from pathlib import Path

import pytest
from flower_cases import (
    MemoryGrid,
    Node,
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
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from salf.flower import Fixed
from salf.flower.server.federation_folder import FederationFolder
from salf.flower.wire import ClientReport, TrainInstructions


def test_metrics_of_clients_are_averaged_and_odd_ones_left_out() -> None:
    model, layers = a_model()
    state = model.state_dict()

    def telling(loss: float, name: str, examples: int, depth: int = 3) -> Node:
        update = update_of(depth, layers, state, 1, examples)
        return lambda message: [(1.0, answer(message, update, metrics={name: loss}))]

    grid = MemoryGrid(
        {
            1: telling(1.0, "loss", 10),
            2: telling(2.0, "loss", 30, depth=1),
            3: telling(9.0, "lost", 10),
            4: telling(0.0, "loss", 90, depth=0),  # the mean of no batch
        }
    )
    result = a_loop(grid, wrapped(inner(4), layers)).run(initial(model), 1)
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(1.75)
    assert "lost" not in result.train_metrics_clientapp[1]


def test_flowers_metrics_and_the_records_agree(tmp_path: Path) -> None:
    model, layers = a_model()

    def late(message: Message) -> Iterable[tuple[float, Message]]:
        report = ClientReport(TrainInstructions.read(message).round, 10.5, 0.5, interrupted=True)
        return [(1.0, answer(message, update_of(1, layers, model.state_dict()), report))]

    def failing(message: Message) -> Iterable[tuple[float, Message]]:
        return [(1.0, Message(Error(code=3, reason="no memory"), reply_to=message))]

    def hostile(message: Message) -> Iterable[tuple[float, Message]]:
        return [(1.0, answer(message, update_of(1, layers, model.state_dict(), examples=0)))]

    grid = MemoryGrid({1: sending(3), 2: late, 3: failing, 4: hostile, 5: sending(2, after=16.0)})
    folder = FederationFolder(tmp_path)
    result = a_loop(grid, wrapped(inner(5), layers), folder=folder).run(initial(model), 2)
    for record in folder.records():
        metrics = result.train_metrics_clientapp[record.round]
        assert metrics["salf-contributors"] == list(record.contributors) == [1, 1, 2]
        assert metrics["salf-depths"] == list(record.depths) == [3, 1, 0, 1]
        assert metrics["salf-deadline-s"] == record.deadline_s == 10.0
        assert metrics["salf-seconds"] == record.seconds == 15.0
        assert (metrics["salf-missing"], metrics["salf-failed"], metrics["salf-rejected"]) == (1, 1, 1)
        assert (record.missing, record.failed, record.rejected) == (1, 1, 1)
        assert metrics["salf-late"] == record.late == record.round - 1
        # By the server's clock the reply was there after a second: no client can have exceeded its deadline by more.
        assert metrics["salf-overshoot-s"] == record.overshoot_s == 0.5


def test_unusable_evaluations_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model, layers = a_model()
    wrong = {
        4: RecordDict({"metrics": MetricRecord({"accuracy": 0.1})}),  # no weight
        5: RecordDict({"metrics": MetricRecord({"accuracy": 0.1, "weight": 0})}),
        6: RecordDict({"metrics": MetricRecord({"accuracy": 0.1, "weight": [1, 2]})}),
        7: RecordDict({"others": MetricRecord({"accuracy": 0.1, "weight": 5})}),  # a record of another name
        8: RecordDict({"metrics": MetricRecord({"accuracy": [0.1], "weight": 5})}),
        9: RecordDict(),
    }

    def node(message: Message) -> Iterable[tuple[float, Message]]:
        if message.metadata.message_type == "train":
            return sending(3)(message)
        place = message.metadata.dst_node_id
        honest = RecordDict({"metrics": MetricRecord({"accuracy": 0.25 * place, "weight": place})})
        return [(1.0, Message(wrong.get(place, honest), reply_to=message))] * 2

    grid = MemoryGrid(dict.fromkeys(range(1, 10), node))
    strategy = wrapped(FedAvg(min_available_nodes=9, weighted_by_key="weight"), layers)
    with caplog.at_level(logging.WARNING, "flwr.salf"):
        result = a_loop(grid, strategy).run(initial(model), 1)
    assert dict(result.evaluate_metrics_clientapp[1]) == {"accuracy": pytest.approx(0.25 * (1 + 4 + 9) / 6)}
    for place in wrong:
        assert f"evaluation: node {place}: " in caplog.text


def test_the_wrapped_strategy_evaluates_within_the_time_of_a_round() -> None:
    model, layers = a_model()

    def node(message: Message) -> Iterable[tuple[float, Message]]:
        if message.metadata.message_type == "train":
            return sending(3)(message)
        if message.metadata.dst_node_id == 3:
            return []
        value = float("nan") if message.metadata.dst_node_id == 2 else 0.75
        return [(1.0, stock_answer(message, ArrayRecord(), accuracy=value))]

    def stripped(message: Message) -> Iterable[tuple[float, Message]]:
        for after, reply in node(message):
            if message.metadata.message_type == "evaluate":
                reply.content = RecordDict({"metrics": reply.content["metrics"]})
            yield after, reply

    grid = MemoryGrid(dict.fromkeys((1, 2, 3), stripped))
    strategy = wrapped(FedAvg(min_available_nodes=3), layers, deadline=Fixed(10.0))  # type: ignore[arg-type]
    tested = []
    loop = a_loop(grid, strategy, evaluate=lambda number, _: tested.append(number))
    result = loop.run(initial(model), 1)
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == 0.75
    assert tested == [0, 1]
    assert grid.clock() - 100 <= 1.25 + 15.25
