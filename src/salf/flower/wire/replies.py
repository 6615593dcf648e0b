"""The wire between a client and the server: an update as Flower's records, and back, trusting nothing."""

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

from salf.errors import InvalidUpdate
from salf.flower.wire.arrays import view
from salf.layers import Layers
from salf.update import Update

NUM_EXAMPLES = "num-examples"
PREFIX = "salf-"
_ROUND, _STEPS, _ELAPSED = f"{PREFIX}round", f"{PREFIX}steps", f"{PREFIX}elapsed-s"
_OVERSHOOT, _INTERRUPTED = f"{PREFIX}overshoot-s", f"{PREFIX}interrupted"
Values = npt.NDArray[Any]

_UNREADABLE = "this reply cannot be read"
_MOST_SAID = 2000  # characters of a reason in the log; how much there is to say, a node decides


@dataclass(frozen=True)
class ClientReport:
    """What a client says of its round, beside the update.

    `round` is the round it answers; `elapsed_seconds` what had passed, since the order was made, when the reply was;
    `overshoot_seconds` by how much its block outlasted the deadline; `interrupted` whether the deadline ended it. A
    client that does not use salf says nothing of it: everything is None.
    """

    round: int | None = None
    elapsed_seconds: float | None = None
    overshoot_seconds: float | None = None
    interrupted: bool | None = None

    def within(self, seconds: float) -> "ClientReport":
        """Return the same, no time being below 0 or above the `seconds` that the server saw pass.

        >>> ClientReport(1, elapsed_seconds=1e9, overshoot_seconds=-3.0, interrupted=False).within(20.0)
        ClientReport(round=1, elapsed_seconds=20.0, overshoot_seconds=0.0, interrupted=False)
        """
        elapsed, overshoot = (
            None if told is None else min(max(told, 0.0), seconds)
            for told in (self.elapsed_seconds, self.overshoot_seconds)
        )
        return replace(self, elapsed_seconds=elapsed, overshoot_seconds=overshoot)


@dataclass(frozen=True)
class Reply:
    """A reply taken apart: the update, what the client says of it, its own metrics, its size on the wire in bytes."""

    update: Update
    told: ClientReport
    metrics: Mapping[str, float | list[float]]
    num_bytes: int


def write_reply(
    update: Update,
    told: ClientReport,
    layers: Layers,
    received: ArrayRecord,
    metrics: Mapping[str, float],
    *,
    whole: bool,
) -> tuple[ArrayRecord, MetricRecord]:
    """Return an update as records: each conveyed layer's new weights, by the names and in the order of `received`.

    With `whole` every array is there, those not conveyed as they were received; the steps say which they are.
    """
    arrays = {}
    for name, array in received.items():
        if name in update.deltas:
            delta = update.deltas[name].detach().cpu().numpy()
            arrays[name] = Array(np.asarray(view(array) + delta, dtype=delta.dtype))
        elif name in update.buffers:
            arrays[name] = Array(update.buffers[name].detach().cpu().numpy())
        elif whole:
            arrays[name] = array
    record: dict[str, int | float | list[int] | list[float]] = dict(metrics)
    record[NUM_EXAMPLES] = update.num_examples
    record[_STEPS] = [update.steps_of(layer.name) if update.conveys(layer) else 0 for layer in layers]
    record[_ROUND] = -1 if told.round is None else told.round
    record[_ELAPSED] = told.elapsed_seconds or 0.0
    record[_OVERSHOOT] = told.overshoot_seconds or 0.0
    record[_INTERRUPTED] = int(told.interrupted or False)
    return ArrayRecord(arrays), MetricRecord(record)


def read_reply(content: RecordDict, layers: Layers, state: Mapping[str, Tensor]) -> Reply:
    """Take apart the reply of a client, which may be anything; the arrays in `content` are used up.

    A client that knows nothing of salf conveys the layers whose arrays it sends, after one step. What cannot be read at
    all raises `InvalidUpdate`, which lists every problem; whether values may enter the model is checked elsewhere.
    """
    try:
        return _read_reply(content, layers, state)
    except InvalidUpdate:
        raise
    except Exception as error:  # whatever objects a node has put together, it must not end the federation
        raise InvalidUpdate(_UNREADABLE, [f"{type(error).__name__}: {error}"]) from error


def _read_reply(content: RecordDict, layers: Layers, state: Mapping[str, Tensor]) -> Reply:
    problems = [
        f"it holds {len(records)} {kind} records, not one"
        for kind, records in (("array", content.array_records), ("metric", content.metric_records))
        if len(records) != 1
    ]
    if problems:
        raise InvalidUpdate(_UNREADABLE, problems)
    [arrays], [record] = content.array_records.values(), content.metric_records.values()
    steps, told = _read_steps(record, layers, problems), _read_told(record, problems)
    size = sum(len(array.data) for array in arrays.values())
    read = _read_arrays(arrays, steps, layers, state, problems)
    if problems:
        raise InvalidUpdate(_UNREADABLE, problems)
    examples = record.get(NUM_EXAMPLES)
    parameters = {name for layer in layers for name in layer.parameters}
    deltas = MappingProxyType(Differences({name: read[name] for name in read if name in parameters}, state))
    buffers = {name: torch.from_numpy(values.copy()) for name, values in read.items() if name not in parameters}
    update = Update(deltas, 1 if steps is None else steps, examples, buffers)  # type: ignore[arg-type] # checked later
    return Reply(update, told, dict(_own_metrics(record)), size)


def _read_steps(record: MetricRecord, layers: Layers, problems: list[str]) -> dict[str, int] | None:
    """Return the steps of each layer that was conveyed; None if the client does not say."""
    given = record.get(_STEPS)
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != len(layers) or any(type(count) is not int for count in given):
        problems.append(f"{_STEPS} is {_short(given)}, not {len(layers)} whole numbers")
        return None
    return {name: count for name, count in zip(layers.names, given, strict=True) if type(count) is int and count != 0}


def _read_told(record: MetricRecord, problems: list[str]) -> ClientReport:
    if _ROUND not in record:
        return ClientReport()
    number = record[_ROUND]
    if type(number) is not int:
        problems.append(f"{_ROUND} is {_short(number)}, not a whole number")
        return ClientReport()
    seconds = {key: _number(record.get(key)) for key in (_ELAPSED, _OVERSHOOT, _INTERRUPTED)}
    problems += [f"{key} is {_short(record.get(key))}, not a number" for key, value in seconds.items() if value is None]
    return ClientReport(number, seconds[_ELAPSED], seconds[_OVERSHOOT], bool(seconds[_INTERRUPTED]))


def _read_arrays(
    arrays: ArrayRecord,
    steps: Mapping[str, int] | None,
    layers: Layers,
    state: Mapping[str, Tensor],
    problems: list[str],
) -> dict[str, Values]:
    """Return the arrays of the conveyed layers, which have the shapes and types of the state's."""
    conveyed = [layer for layer in layers if steps is None or layer.name in steps]
    parameters = {name for layer in conveyed for name in layer.parameters}
    travelling = {name for layer in conveyed for name in layer.buffers}
    missing = [name for name in parameters if name not in arrays] if steps is not None else []
    problems += [f"'{name}' is missing, though its layer is said to be conveyed" for name in sorted(missing)]
    read: dict[str, Values] = {}
    for name in list(arrays):
        array = arrays.pop(name)  # so that they last as long as the update, whoever still holds the reply
        if name not in state:
            problems.append(f"{_short(name)} is no array of this model")
        elif name in parameters or name in travelling:
            try:
                read[name] = _read_array(array, state[name].numpy())
            except (TypeError, ValueError) as error:
                problems.append(f"'{name}' cannot be used: {error}")
    return read


def _read_array(array: Array, known: Values) -> Values:
    values = view(array)
    if values.shape != known.shape:
        raise ValueError(f"its shape is {values.shape}, not {known.shape}")
    if values.dtype != known.dtype:
        raise ValueError(f"its type is {values.dtype}, not {known.dtype}")
    return values


class Differences(Mapping[str, Tensor]):
    """By what arrays differ from those of a state, computed whenever it is asked for.

    To subtract twice, for a check and for a sum, takes less time than to set memory aside for a whole model.
    """

    def __init__(self, arrays: Mapping[str, Values], state: Mapping[str, Tensor]) -> None:
        self._arrays, self._state = arrays, state

    def __getitem__(self, name: str) -> Tensor:
        with np.errstate(all="ignore"):  # what is not finite is refused, with a reason
            return torch.from_numpy(np.asarray(self._arrays[name] - self._state[name].numpy()))

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _own_metrics(record: MetricRecord) -> Iterator[tuple[str, float | list[float]]]:
    """Yield the user's metrics: finite numbers, and lists of them."""
    for key, value in record.items():
        numbers = value if isinstance(value, list) else [value]
        is_own = not key.startswith(PREFIX) and key != NUM_EXAMPLES
        if is_own and all(_number(number) is not None for number in numbers):
            yield key, [float(number) for number in numbers] if isinstance(value, list) else float(value)


def _number(value: object) -> float | None:
    """Return a finite number as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def one_line(text: str) -> str:
    r"""Return what a node has said as one line of printable characters, so that it cannot forge lines of a log.

    >>> one_line("no memory\nround 3: all is well")
    'no memory round 3: all is well'
    """
    shown = "".join(character if character.isprintable() else " " for character in text[: _MOST_SAID + 1])
    return shown if len(text) <= _MOST_SAID else f"{shown[:_MOST_SAID]}…"
