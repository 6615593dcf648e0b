"""The steps, passes and examples of each layer, from a client's reply to the weights of the aggregation."""

import logging
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from flower_cases import MemoryGrid, Node, a_loop, a_model, answer, initial, inner, update_of, wrapped
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from salf.aggregation import Contributors, Memory
from salf.flower.wire import ClientReport, read_reply, write_reply
from salf.update import Update

MODEL, LAYERS = a_model()
STATE = MODEL.state_dict()
COUNTS = {"first": 1, "norm": 2, "last": 3}


def read(update: Update) -> tuple[Update, MetricRecord]:
    """Return an update as the server reads it, and the metrics that carried it."""
    arrays, record = write_reply(update, ClientReport(1, 1.0, 0.0, False), LAYERS, initial(MODEL), {}, whole=False)
    return read_reply(RecordDict({"arrays": arrays, "metrics": record}), LAYERS, STATE).update, record


def test_passes_and_examples_of_the_layers_that_were_sent_arrive() -> None:
    sent = replace(update_of(2, LAYERS, STATE), steps=COUNTS, passes=COUNTS, examples={**COUNTS, "last": 2**53})
    received, metrics = read(sent)
    assert (metrics["salf-passes"], metrics["salf-examples"]) == ([0, 2, 3], [0, 2, 2**53])
    assert (received.passes, received.examples) == ({"norm": 2, "last": 3}, {"norm": 2, "last": 2**53})
    assert received.steps == received.passes


def test_what_a_client_does_not_count_is_not_sent() -> None:
    received, metrics = read(update_of(3, LAYERS, STATE))
    assert not {"salf-passes", "salf-examples"} & metrics.keys()
    assert (received.passes, received.examples) == ({}, {})


def node(update: Update) -> Node:
    def reply(message: Message) -> Iterable[tuple[float, Message]]:
        return [(1.0, answer(message, update))]

    return reply


@pytest.mark.parametrize("rule", [Contributors(), Memory()])
def test_clients_weigh_by_the_examples_that_they_report(rule: object, caplog: pytest.LogCaptureFixture) -> None:
    one, two, silent = (update_of(depth, LAYERS, STATE, seed) for seed, depth in enumerate((3, 1, 3)))
    one = replace(one, examples={"first": 5, "norm": 5, "last": 6})
    two = replace(two, examples={"last": 2})
    grid = MemoryGrid({1: node(one), 2: node(two), 3: node(silent)})
    with caplog.at_level(logging.WARNING, "flwr.salf"):
        result = a_loop(grid, wrapped(inner(3), LAYERS, rule=rule, weigh="examples")).run(initial(MODEL), 1)
    after, metrics = result.arrays.to_torch_state_dict(), result.train_metrics_clientapp[1]
    assert (metrics["salf-contributors"], metrics["salf-rejected"]) == ([1, 1, 2], 1)
    assert "node 3: invalid: update" in caplog.text
    assert "it does not say how many examples its layers have seen" in caplog.text
    weighted = 0.75 * one.deltas["last.weight"] + 0.25 * two.deltas["last.weight"]
    torch.testing.assert_close(after["last.weight"], STATE["last.weight"] + weighted)
    torch.testing.assert_close(after["first.weight"], STATE["first.weight"] + one.deltas["first.weight"])


def test_a_client_without_salf_has_no_counts() -> None:
    arrays = ArrayRecord({name: Array(value.numpy()) for name, value in STATE.items()})
    _, record = write_reply(update_of(3, LAYERS, STATE), ClientReport(), LAYERS, arrays, {}, whole=False)
    del record["salf-steps"]
    update = read_reply(RecordDict({"arrays": arrays, "metrics": record}), LAYERS, STATE).update
    assert (update.steps, update.passes, update.examples) == (1, {}, {})
