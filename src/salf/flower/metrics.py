"""Metrics of several clients as one, whatever some of them may have sent."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy

from salf.flower.replies import NUM_EXAMPLES

log = logging.getLogger("flwr.salf")

Values = Mapping[str, float | list[float]]


def mean_metrics(strategy: Strategy, reported: Sequence[tuple[Values, int]]) -> MetricRecord:
    """Return the clients' training metrics as one record, as `strategy` makes it; each comes with its examples.

    Flower's averaging stops the run where clients report different metrics; here those who report what most do count.
    """
    alike = most_common([_shape(values) for values, _ in reported])
    chosen = [(values, examples) for values, examples in reported if _shape(values) == alike]
    if not chosen or not alike:
        return MetricRecord()
    if isinstance(strategy, FedAvg):
        key = strategy.weighted_by_key
        records = [RecordDict({"metrics": MetricRecord({**values, key: examples})}) for values, examples in chosen]
        return strategy.train_metrics_aggr_fn(records, key)
    return MetricRecord({key: _mean(chosen, key) for key, length in alike if length is None})


def _mean(reported: Sequence[tuple[Values, int]], key: str) -> float:
    total = sum(examples for _, examples in reported)
    numbers = [(values[key], examples) for values, examples in reported]
    return sum(number * examples / total for number, examples in numbers if not isinstance(number, list))


def usable_evaluations(replies: Iterable[Message]) -> list[Message]:
    """Return the evaluation replies that can be averaged together; the others are logged with their node."""
    whole = [reply for reply in replies if _is_usable(reply)]
    alike = most_common([_shape_of(reply) for reply in whole])
    for reply in whole:
        if _shape_of(reply) != alike:
            _refuse(reply, "its metrics are not those that most nodes report")
    return [reply for reply in whole if _shape_of(reply) == alike]


def most_common(shapes: Sequence[frozenset[tuple[str, int | None]]]) -> frozenset[tuple[str, int | None]]:
    """Return what occurs most often, and first among equals; nothing if there is none."""
    return Counter(shapes).most_common(1)[0][0] if shapes else frozenset()


def _is_usable(reply: Message) -> bool:
    if reply.has_error():
        _refuse(reply, f"error {reply.error.code}: {reply.error.reason}")
        return False
    records = list(reply.content.metric_records.values())
    if len(records) != 1:
        _refuse(reply, f"it holds {len(records)} metric records, not one")
        return False
    numbers = [number for value in records[0].values() for number in (value if isinstance(value, list) else [value])]
    if not all(math.isfinite(number) for number in numbers):
        _refuse(reply, "it reports numbers that are not finite")
        return False
    examples = records[0].get(NUM_EXAMPLES, 1)
    if isinstance(examples, list) or not 0 < examples <= 2**53:
        _refuse(reply, f"{NUM_EXAMPLES} is {examples}, not a number from 1 to 2^53")
        return False
    return True


def _refuse(reply: Message, reason: str) -> None:
    log.warning("evaluation: node %d: %s", reply.metadata.src_node_id, reason)


def _shape_of(reply: Message) -> frozenset[tuple[str, int | None]]:
    return _shape(next(iter(reply.content.metric_records.values())))


def _shape(values: Mapping[str, object]) -> frozenset[tuple[str, int | None]]:
    """Return which metrics there are, and of lists how long they are."""
    return frozenset(
        (key, len(value) if isinstance(value, list) else None) for key, value in values.items() if key != NUM_EXAMPLES
    )
