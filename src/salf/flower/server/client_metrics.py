"""The metrics of several clients as one record, even if some clients send others or none."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy

from salf.flower.server.composition import weight_key
from salf.flower.server.federation_record import warn_of_node
from salf.flower.wire import NUM_EXAMPLES, Metrics

# The names of the metrics, with the length of each that is a list.
_Signature = frozenset[tuple[str, int | None]]


def mean_metrics(strategy: Strategy, reported: Sequence[tuple[Metrics, int]]) -> MetricRecord:
    """Average the training metrics of the clients as a strategy does.

    Flower's averaging stops the run if clients report different metrics. Here only the clients count that report the
    most common set of metrics.

    Args:
        strategy: The wrapped strategy.
        reported: Each client's metrics and its number of examples.
    """
    common = _most_common([_signature(metrics) for metrics, _ in reported])
    chosen = [(metrics, examples) for metrics, examples in reported if _signature(metrics) == common]
    if not chosen or not common:
        return MetricRecord()
    if isinstance(strategy, FedAvg):
        key = strategy.weighted_by_key
        records = [RecordDict({"metrics": MetricRecord({**metrics, key: examples})}) for metrics, examples in chosen]
        return strategy.train_metrics_aggr_fn(records, key)
    return MetricRecord({key: _mean(chosen, key) for key, length in common if length is None})


def _mean(reported: Sequence[tuple[Metrics, int]], key: str) -> float:
    """Return the mean of one metric, weighted by the numbers of examples."""
    total = sum(examples for _, examples in reported)
    numbers = [(metrics[key], examples) for metrics, examples in reported]
    return sum(number * examples / total for number, examples in numbers if not isinstance(number, list))


def usable_evaluations(strategy: Strategy, replies: Iterable[Message]) -> list[Message]:
    """Return the evaluation replies that a strategy can average; each other one is logged with its node.

    Args:
        strategy: The wrapped strategy.
        replies: The replies of the nodes, which may contain anything.
    """
    key = weight_key(strategy)
    named = [(reply, name) for reply in replies if (name := _record_name(reply, key)) is not None]
    signatures = [_signature(reply.content.metric_records[name], name) for reply, name in named]
    common = _most_common(signatures)
    usable = []
    for (reply, _), signature in zip(named, signatures, strict=True):
        if signature == common:
            usable.append(reply)
        else:
            _refuse(reply, "its metrics are not those that most nodes report")
    return usable


def _most_common(signatures: Sequence[_Signature]) -> _Signature:
    """Return the most common signature, the first of several; an empty one if there is none."""
    return Counter(signatures).most_common(1)[0][0] if signatures else frozenset()


def _record_name(reply: Message, weighted_by: str | None) -> str | None:
    """Return the name of a reply's one record of finite metrics; if it has none, log that and return None."""
    if reply.has_error():
        _refuse(reply, f"error {reply.error.code}: {reply.error.reason}")
        return None
    try:
        [(name, record)] = reply.content.metric_records.items()
        _check_numbers(record, weighted_by)
    except Exception as error:  # noqa: BLE001 - objects of any kind that a node sends must not end the run
        _refuse(reply, f"it is not one record of metrics: {error}")
        return None
    return name


def _check_numbers(record: MetricRecord, weighted_by: str | None) -> None:
    """Raise `ValueError` unless all numbers are finite and the weights can be divided by."""
    for value in record.values():
        if not all(math.isfinite(number) for number in (value if isinstance(value, list) else [value])):
            raise ValueError("it reports numbers that are not finite")
    for key in {NUM_EXAMPLES, weighted_by} - {None}:
        weight = record.get(str(key), None if key == weighted_by else 1)
        if isinstance(weight, list) or weight is None or not 0 < weight <= 2**53:
            raise ValueError(f"{key} is {weight}, not a number above 0 and up to 2^53")


def _refuse(reply: Message, reason: str) -> None:
    """Log an evaluation that does not count."""
    warn_of_node("evaluation", reply.metadata.src_node_id, reason)


def _signature(metrics: Mapping[str, object], name: str = "") -> _Signature:
    """Return which metrics a record contains, and the record's name."""
    lengths = {
        (key, len(value) if isinstance(value, list) else None) for key, value in metrics.items() if key != NUM_EXAMPLES
    }
    return frozenset({*lengths, (name, 0)} if name else lengths)
