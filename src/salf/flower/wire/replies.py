"""A client's reply as Flower's records: written by the client, and read by a server that trusts nothing in it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from salf.errors import InvalidUpdate, shown
from salf.flower.wire.arrays import array_view, as_numpy, from_record, size_of
from salf.layers import Layers, is_unchanged
from salf.update import Update

NUM_EXAMPLES = "num-examples"
PREFIX = "salf-"
_ROUND, _STEPS, _ELAPSED = f"{PREFIX}round", f"{PREFIX}steps", f"{PREFIX}elapsed-s"
_PASSES, _EXAMPLES = f"{PREFIX}passes", f"{PREFIX}examples"
_OVERSHOOT, _INTERRUPTED = f"{PREFIX}overshoot-s", f"{PREFIX}interrupted"
_UNREADABLE = "this reply cannot be read; send what salf.flower.reply returns"

Metrics = Mapping[str, float | list[float]]


@dataclass(frozen=True)
class ClientReport:
    """What a client reports of its round, beside the update. A client that does not use salf reports None.

    Attributes:
        round: The round that the reply answers.
        elapsed_seconds: The time from the server's message to the reply, or of the loop alone where only that counts.
        overshoot_seconds: By how much the client exceeded the deadline; 0 if it met it.
        interrupted: Whether the deadline ended the training loop.
    """

    round: int | None = None
    elapsed_seconds: float | None = None
    overshoot_seconds: float | None = None
    interrupted: bool | None = None

    def within(self, seconds: float) -> "ClientReport":
        """Return the report with its times limited to what the server's clock allows.

        Args:
            seconds: The time that the server measured between the start of the round and this reply.

        >>> ClientReport(1, elapsed_seconds=1e9, overshoot_seconds=-3.0, interrupted=False).within(20.0)
        ClientReport(round=1, elapsed_seconds=20.0, overshoot_seconds=0.0, interrupted=False)
        """
        elapsed, overshoot = (
            None if reported is None else min(max(reported, 0.0), seconds)
            for reported in (self.elapsed_seconds, self.overshoot_seconds)
        )
        return replace(self, elapsed_seconds=elapsed, overshoot_seconds=overshoot)


@dataclass(frozen=True)
class ClientReply:
    """A reply that was read.

    Attributes:
        update: The layers that the client finished; its values are not checked yet.
        report: What the client reports of its round.
        metrics: The user's own metrics: finite numbers and lists of them.
        num_bytes: The size of the arrays on the wire.
    """

    update: Update
    report: ClientReport
    metrics: Metrics
    num_bytes: int


def write_reply(
    update: Update,
    report: ClientReport,
    layers: Layers,
    received: ArrayRecord,
    metrics: Mapping[str, float],
    *,
    whole: bool,
) -> tuple[ArrayRecord, MetricRecord]:
    """Write an update as records.

    Args:
        update: The client's partial update.
        report: What the client reports beside it.
        layers: The layers of the model; the order of the steps in the metrics.
        received: The arrays of the server's message.
        metrics: The user's own metrics.
        whole: Whether to include the arrays of unfinished layers, unchanged.

    Returns:
        The new weights of each finished layer, with the names, the types and in the order of `received`, and the
        metrics.
    """
    arrays = {}
    for name, array in received.items():
        if name in update.deltas:
            known = array_view(array)
            arrays[name] = Array(np.asarray(known + as_numpy(update.deltas[name]), dtype=known.dtype))
        elif name in update.buffers:
            arrays[name] = _write_buffer(update.buffers[name], array)
        elif whole:
            arrays[name] = array
    return ArrayRecord(arrays), _write_metrics(update, report, layers, metrics)


def _write_buffer(value: Tensor, received: Array) -> Array:
    """Return a buffer's array in the type received: what was received if it has not changed in the client's type."""
    known = from_record({"buffer": received})["buffer"]
    return received if is_unchanged(value, known) else Array(np.asarray(as_numpy(value), dtype=as_numpy(known).dtype))


def _write_metrics(update: Update, report: ClientReport, layers: Layers, metrics: Mapping[str, float]) -> MetricRecord:
    """Return what was counted of each layer, 0 for one that was not sent, with the report and the user's metrics."""
    sent = [layer.name if update.includes(layer) else None for layer in layers]
    record: dict[str, int | float | list[int] | list[float]] = dict(metrics)
    record[NUM_EXAMPLES] = update.num_examples
    record[_STEPS] = [0 if name is None else update.steps_of(name) for name in sent]
    for key, counts in ((_PASSES, update.passes), (_EXAMPLES, update.examples)):
        if counts:
            record[key] = [0 if name is None else counts.get(name, 0) for name in sent]
    record[_ROUND] = -1 if report.round is None else report.round
    record[_ELAPSED] = report.elapsed_seconds or 0.0
    record[_OVERSHOOT] = report.overshoot_seconds or 0.0
    record[_INTERRUPTED] = int(report.interrupted or False)
    return MetricRecord(record)


def read_reply(content: RecordDict, layers: Layers, state: Mapping[str, Tensor]) -> ClientReply:
    """Read a client's reply, which may contain anything.

    A client that does not use salf sends the layers whose arrays it includes, after one step.

    Args:
        content: The reply's records. Its arrays are removed, so that they live only as long as the update.
        layers: The layers of the model.
        state: The global model, from which the client started.

    Raises:
        InvalidUpdate: The reply cannot be read; the error lists every problem. Whether the values may enter the model
            is checked by `UpdateValidator`.
    """
    try:
        return _read_reply(content, layers, state)
    except InvalidUpdate:
        raise
    except Exception as error:  # objects of any kind that a node sends must not end the run
        raise InvalidUpdate(_UNREADABLE, [f"{type(error).__name__}: {error}"]) from error


def _read_reply(content: RecordDict, layers: Layers, state: Mapping[str, Tensor]) -> ClientReply:
    problems = [
        f"it holds {len(records)} {kind} records, not one"
        for kind, records in (("array", content.array_records), ("metric", content.metric_records))
        if len(records) != 1
    ]
    if problems:
        raise InvalidUpdate(_UNREADABLE, problems)
    [arrays], [record] = content.array_records.values(), content.metric_records.values()
    steps, passes, examples = (_read_counts(record, key, layers, problems) for key in (_STEPS, _PASSES, _EXAMPLES))
    report, size = _read_report(record, problems), size_of(arrays)
    read = _read_arrays(arrays, steps, layers, state, problems)
    if problems:
        raise InvalidUpdate(_UNREADABLE, problems)
    parameters = {name for layer in layers for name in layer.parameters}
    deltas = MappingProxyType(_LazyDeltas({name: read[name] for name in read if name in parameters}, state))
    buffers = {name: torch.from_numpy(values.copy()) for name, values in read.items() if name not in parameters}
    num_examples: Any = record.get(NUM_EXAMPLES)  # the validator checks the numbers
    steps_of_each = 1 if steps is None else steps
    update = Update(deltas, steps_of_each, num_examples, buffers, passes or {}, examples or {})
    return ClientReply(update, report, _own(record), size)


def _read_counts(record: MetricRecord, key: str, layers: Layers, problems: list[str]) -> dict[str, int] | None:
    """Return what was counted of each layer, without zeros; None if the client does not report it."""
    given = record.get(key)
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != len(layers) or any(type(count) is not int for count in given):
        problems.append(f"{key} is {shown(given)}, not {len(layers)} whole numbers")
        return None
    return {name: count for name, count in zip(layers.names, given, strict=True) if type(count) is int and count != 0}


def _read_report(record: MetricRecord, problems: list[str]) -> ClientReport:
    """Return what the client reports of its round; an empty report if it does not use salf."""
    if _ROUND not in record:
        return ClientReport()
    number = record[_ROUND]
    if type(number) is not int:
        problems.append(f"{_ROUND} is {shown(number)}, not a whole number")
        return ClientReport()
    seconds = {key: _finite(record.get(key)) for key in (_ELAPSED, _OVERSHOOT, _INTERRUPTED)}
    problems += [f"{key} is {shown(record.get(key))}, not a number" for key, value in seconds.items() if value is None]
    return ClientReport(number, seconds[_ELAPSED], seconds[_OVERSHOOT], bool(seconds[_INTERRUPTED]))


def _read_arrays(
    arrays: ArrayRecord,
    steps: Mapping[str, int] | None,
    layers: Layers,
    state: Mapping[str, Tensor],
    problems: list[str],
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of the layers that were sent, with the shapes and types of `state`."""
    sent = [layer for layer in layers if steps is None or layer.name in steps]
    parameters = {name for layer in sent for name in layer.parameters}
    wanted = parameters | {name for layer in sent for name in layer.buffers}
    missing = [name for name in parameters if name not in arrays] if steps is not None else []
    problems += [f"'{name}' is missing, though its layer has steps" for name in sorted(missing)]
    read = {}
    for name in list(arrays):
        array = arrays.pop(name)  # the reply may live on, but not its arrays
        if name not in state:
            problems.append(f"{shown(name)} is no array of this model")
        elif name in wanted:
            try:
                read[name] = _read_array(array, state[name].numpy())
            except (TypeError, ValueError) as error:
                problems.append(f"'{name}' cannot be used: {error}")
    return read


def _read_array(array: Array, known: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the values of an array. Raises `ValueError` unless shape and type are those of `known`."""
    values = array_view(array)
    if values.shape != known.shape:
        raise ValueError(f"its shape is {values.shape}, not {known.shape}")
    if values.dtype != known.dtype:
        raise ValueError(f"its type is {values.dtype}, not {known.dtype}")
    return values


class _LazyDeltas(Mapping[str, Tensor]):
    """The differences between arrays and a state, computed at each access.

    To subtract twice, for the check and for the sum, takes less time than to allocate memory for a whole model.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], state: Mapping[str, Tensor]) -> None:
        self._arrays, self._state = arrays, state

    def __getitem__(self, name: str) -> Tensor:
        with np.errstate(all="ignore"):  # the validator refuses values that are not finite
            return torch.from_numpy(np.asarray(self._arrays[name] - self._state[name].numpy()))

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _own(record: MetricRecord) -> dict[str, float | list[float]]:
    """Return the user's own metrics that are finite numbers, or lists of them."""
    metrics: dict[str, float | list[float]] = {}
    for key, value in record.items():
        numbers = [_finite(number) for number in (value if isinstance(value, list) else [value])]
        finite = [number for number in numbers if number is not None]
        if not key.startswith(PREFIX) and key != NUM_EXAMPLES and len(finite) == len(numbers):
            metrics[key] = finite if isinstance(value, list) else finite[0]
    return metrics


def _finite(value: object) -> float | None:
    """Return a finite number as a float; None for anything else, True and False included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number that no float holds
        return None
