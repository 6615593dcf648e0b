"""What only a federation saves in a checkpoint: nodes, times, metrics, and the state of the wrapped strategy."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from salf.flower.server.deadlines import RoundTimes
from salf.flower.server.federation_state import FederationState
from salf.flower.wire import from_record, to_record
from salf.runs import Attachment
from salf.simulation import ServerState


def pack(state: FederationState, result: Result, strategy: Strategy) -> Attachment:
    """Return what a checkpoint holds beside the server's state, with the state of Python's `random`.

    Args:
        state: The state after the round.
        result: The results of all rounds so far.
        strategy: The wrapped strategy, with its momentum and the like.
    """
    tensors: dict[str, Tensor] = {}
    notes = {
        "nodes": [str(node) for node in state.nodes],
        "times": [[t.deadline_seconds, list(t.whole), t.unfinished, t.share, t.round] for t in state.times],
        "upload_rates": {str(node): rate for node, rate in state.upload_rates.items()},
        "metrics": [{str(number): dict(record) for number, record in metrics.items()} for metrics in _metrics(result)],
        "strategy": _pack_strategy(strategy, "strategy", tensors),
        "random": random.getstate(),
    }
    return Attachment(tensors, notes)


def unpack(server: ServerState, attachment: Attachment, strategy: Strategy) -> tuple[FederationState, Result]:
    """Return the state and the results of a checkpoint, and restore `strategy` and Python's `random`.

    Args:
        server: The server's state in the checkpoint.
        attachment: What `pack` returned.
        strategy: The wrapped strategy, whose state is replaced.

    Raises:
        LookupError: Another strategy or version wrote the checkpoint. The same holds for the other errors.
        TypeError: See above.
        ValueError: See above.
        AttributeError: See above.
    """
    notes = attachment.notes
    times = tuple(RoundTimes(deadline, tuple(whole), *rest) for deadline, whole, *rest in notes["times"])
    rates = {int(node): rate for node, rate in notes["upload_rates"].items()}
    state = FederationState(server, tuple(int(node) for node in notes["nodes"]), times, rates)
    result = Result(arrays=to_record(server.weights))
    for metrics, saved in zip(_metrics(result), notes["metrics"], strict=True):
        metrics.update({int(number): MetricRecord(values) for number, values in saved.items()})
    _unpack_strategy(strategy, "strategy", notes["strategy"], attachment.tensors)
    version, words, gauss = notes["random"]
    random.setstate((version, tuple(words), gauss))  # Flower samples nodes with it
    return state, result


def _metrics(result: Result) -> tuple[dict[int, MetricRecord], ...]:
    """Return the metrics of a result, each by round."""
    return result.train_metrics_clientapp, result.evaluate_metrics_clientapp, result.evaluate_metrics_serverapp


def _pack_strategy(strategy: Strategy, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Describe the arrays that a strategy keeps, such as momentum, and add them to `tensors`."""
    described: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        place = f"{prefix}/{name}"
        if isinstance(value, Strategy):
            described[name] = {"strategy": _pack_strategy(value, place, tensors)}
            continue
        arrays = _arrays_of(value)
        if arrays:
            tensors |= {f"{place}/{key}": tensor for key, tensor in arrays.items()}
            described[name] = {type(value).__name__: list(arrays)}
    return described


def _arrays_of(value: object) -> dict[str, Tensor]:
    """Return the arrays of a mapping, a list or a record of arrays; an empty dict for anything else."""
    if isinstance(value, ArrayRecord):
        return from_record(value)
    if isinstance(value, list):
        value = {str(index): array for index, array in enumerate(value)}
    if not isinstance(value, dict) or not all(isinstance(array, (np.ndarray, np.generic)) for array in value.values()):
        return {}
    return {str(key): torch.from_numpy(np.array(array)) for key, array in value.items()}


def _unpack_strategy(
    strategy: Strategy, prefix: str, described: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Restore what `_pack_strategy` described."""
    for name, description in described.items():
        place = f"{prefix}/{name}"
        [(kind, keys)] = description.items()
        if kind == "strategy":
            _unpack_strategy(getattr(strategy, name), place, keys, tensors)
        else:
            setattr(strategy, name, _restored(kind, {key: tensors[f"{place}/{key}"] for key in keys}))


def _restored(kind: str, arrays: dict[str, Tensor]) -> object:
    """Return arrays as an object of the class `kind`, which held them before."""
    if kind == "ArrayRecord":
        return to_record(arrays)
    values = {key: tensor.numpy() for key, tensor in arrays.items()}
    return [*values.values()] if kind == "list" else values
