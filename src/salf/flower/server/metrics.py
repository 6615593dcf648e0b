"""Metrics of several clients as one, whatever some of them may have sent."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy

from salf.flower.server.composition import innermost
from salf.flower.wire import NUM_EXAMPLES, one_line

log = logging.getLogger("flwr.salf")

Values = Mapping[str, float | list[float]]
Shape = frozenset[tuple[str, int | None]]


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


def usable_evaluations(strategy: Strategy, replies: Iterable[Message]) -> list[Message]:
    """Return the evaluation replies that `strategy` can average together; the others are logged with their node."""
    averaging = innermost(strategy)
    key = averaging.weighted_by_key if isinstance(averaging, FedAvg) else None
    named = [(reply, name) for reply in replies if (name := _record_name(reply, key)) is not None]
    shapes = [_shape(reply.content.metric_records[name], name) for reply, name in named]
    alike = most_common(shapes)
    usable = []
    for (reply, _), shape in zip(named, shapes, strict=True):
        if shape == alike:
            usable.append(reply)
        else:
            _refuse(reply, "its metrics are not those that most nodes report")
    return usable


def most_common(shapes: Sequence[Shape]) -> Shape:
    """Return what occurs most often, and first among equals; nothing if there is none."""
    return Counter(shapes).most_common(1)[0][0] if shapes else frozenset()


def _record_name(reply: Message, weighted_by: str | None) -> str | None:
    """Return the name of the reply's one record of finite metrics; None, with a line in the log, if it has none."""
    if reply.has_error():
        _refuse(reply, f"error {reply.error.code}: {reply.error.reason}")
        return None
    try:
        [(name, record)] = reply.content.metric_records.items()
        _check_numbers(record, weighted_by)
    except Exception as error:  # noqa: BLE001 - whatever a node has put together, it must not end the federation
        _refuse(reply, f"it is not one record of metrics: {error}")
        return None
    return name


def _check_numbers(record: MetricRecord, weighted_by: str | None) -> None:
    """Raise `ValueError` unless all numbers are finite, and the weight one that can be divided by."""
    for value in record.values():
        if not all(math.isfinite(number) for number in (value if isinstance(value, list) else [value])):
            raise ValueError("it reports numbers that are not finite")
    for key in {NUM_EXAMPLES, weighted_by} - {None}:
        weight = record.get(str(key), None if key == weighted_by else 1)
        if isinstance(weight, list) or weight is None or not 0 < weight <= 2**53:
            raise ValueError(f"{key} is {weight}, not a number above 0 and up to 2^53")


def _refuse(reply: Message, reason: str) -> None:
    log.warning("evaluation: node %d: %s", reply.metadata.src_node_id, one_line(reason))


def _shape(values: Mapping[str, object], name: str = "") -> Shape:
    """Return the name of a record, which metrics it holds, and of lists how long they are."""
    lengths = {
        (key, len(value) if isinstance(value, list) else None) for key, value in values.items() if key != NUM_EXAMPLES
    }
    return frozenset({*lengths, (name, 0)} if name else lengths)
