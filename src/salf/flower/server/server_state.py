"""All that one round of a federation hands on to the next, and how it survives the death of the server."""

import logging
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import BaseFileLock
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from salf.errors import RunFolderError
from salf.flower.server.deadlines import REMEMBERED_ROUNDS, RoundTimes
from salf.flower.server.record import FederationRecord
from salf.flower.wire import from_record, to_record
from salf.runs import Attachment, load_checkpoint, lock_folder, save_checkpoint, write_atomically
from salf.simulation import ServerState

log = logging.getLogger("flwr.salf")

MetricsByRound = dict[int, MetricRecord]


@dataclass(frozen=True)
class FederationState:
    """What determines the next round, as far as the server can know it.

    `server` holds the round, the weights, and what was observed of each node by its place in `nodes`, which are listed
    in the order in which they were first asked. `times` are those of the last rounds, `upload_rates` in bytes per
    second by node.
    """

    server: ServerState
    nodes: tuple[int, ...] = ()
    times: tuple[RoundTimes, ...] = ()
    upload_rates: Mapping[int, float] = field(default_factory=dict)

    def places(self, nodes: list[int]) -> tuple["FederationState", list[int]]:
        """Return each node's place, and the state in which all of them have one."""
        known = {node: place for place, node in enumerate(self.nodes)}
        for node in nodes:
            known.setdefault(node, len(known))
        return FederationState(self.server, tuple(known), self.times, self.upload_rates), [known[n] for n in nodes]

    def after(self, server: ServerState, times: RoundTimes, upload_rates: Mapping[int, float]) -> "FederationState":
        """Return the state after a round; a rate is averaged with the one known before."""
        rates = dict(self.upload_rates)
        for node, rate in upload_rates.items():
            rates[node] = (rates.get(node, rate) + rate) / 2
        return FederationState(server, self.nodes, (*self.times, times)[-REMEMBERED_ROUNDS:], rates)


class FederationFolder:
    """A folder with `records.jsonl`, one line for each round, and `checkpoint/state.safetensors`, written every round.

    Whatever dies at any instant, it holds the state after the last whole round; a round that was interrupted is played
    again.
    """

    def __init__(self, path: Path, patience_seconds: float = 120.0) -> None:
        self.path, self.patience_seconds = path, patience_seconds
        self._records, self._checkpoint = path / "records.jsonl", path / "checkpoint" / "state.safetensors"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, and keep other server apps out of it until the block ends or the process dies.

        One that is still there is waited for: where the SuperLink has died, its app needs some time to notice. Raises
        `RunFolderError` when it does not leave.
        """
        try:
            self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot make the folder {self.path}: {error}; choose another") from error
        lock = self._lock()
        try:
            yield
        finally:
            lock.release()

    def _lock(self) -> BaseFileLock:
        try:
            return lock_folder(self.path, patience_seconds=0)
        except RunFolderError:
            log.warning("another server app is at work in %s; waiting for it to end", self.path)
        return lock_folder(self.path, self.patience_seconds)

    def load(self, strategy: Strategy) -> tuple[FederationState, Result] | None:
        """Return the state and the results so far, having given `strategy` its own state back; None in a new folder."""
        if not self._checkpoint.exists():
            write_atomically(self._records, b"")
            return None
        server, attachment = load_checkpoint(self._checkpoint)
        self._keep_records(server.round)
        try:
            return _unpack(server, attachment, strategy)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RunFolderError(
                f"the checkpoint {self._checkpoint} was written by another strategy or version "
                f"({type(error).__name__}: {error}); start the run anew in another folder"
            ) from error

    def save(self, state: FederationState, result: Result, strategy: Strategy, record: FederationRecord) -> None:
        """Write a round's record, then its checkpoint."""
        try:
            with self._records.open("ab") as file:
                file.write(f"{record.to_json()}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(
                f"cannot write {self._records}: {error.strerror or error}; mend that and start the app again"
            ) from error
        save_checkpoint(self._checkpoint, state.server, _pack(state, result, strategy))

    def records(self) -> list[FederationRecord]:
        """Return the records of the rounds that are done; a last line that a crash has cut short does not count."""
        try:
            lines = self._records.read_bytes().split(b"\n")[:-1]
            return [FederationRecord.from_json(line.decode()) for line in lines]
        except OSError as error:
            raise RunFolderError(f"cannot read {self._records}: {error.strerror or error}; mend that") from error
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{self._records} is damaged ({error}); start the run anew elsewhere") from error

    def _keep_records(self, rounds: int) -> None:
        """Drop the record of a round whose checkpoint was not written."""
        kept = self.records()[:rounds]
        if len(kept) < rounds:
            raise RunFolderError(f"{self._records} lacks rounds that were played; start the run anew elsewhere")
        write_atomically(self._records, "".join(f"{record.to_json()}\n" for record in kept).encode())


def _pack(state: FederationState, result: Result, strategy: Strategy) -> Attachment:
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


def _unpack(server: ServerState, attachment: Attachment, strategy: Strategy) -> tuple[FederationState, Result]:
    notes = attachment.notes
    times = tuple(RoundTimes(deadline, tuple(whole), *rest) for deadline, whole, *rest in notes["times"])
    rates = {int(node): rate for node, rate in notes["upload_rates"].items()}
    state = FederationState(server, tuple(int(node) for node in notes["nodes"]), times, rates)
    result = Result(arrays=to_record(server.weights))
    for metrics, saved in zip(_metrics(result), notes["metrics"], strict=True):
        metrics.update({int(number): MetricRecord(values) for number, values in saved.items()})
    _unpack_strategy(strategy, "strategy", notes["strategy"], attachment.tensors)
    version, words, gauss = notes["random"]
    random.setstate((version, tuple(words), gauss))  # from which Flower samples the nodes
    return state, result


def _metrics(result: Result) -> tuple[MetricsByRound, MetricsByRound, MetricsByRound]:
    return result.train_metrics_clientapp, result.evaluate_metrics_clientapp, result.evaluate_metrics_serverapp


def _pack_strategy(strategy: Strategy, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Describe the arrays that a strategy has gathered, such as momentum, and put them into `tensors`."""
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
    """Return the arrays in a mapping, a list or a record of arrays; nothing for anything else."""
    if isinstance(value, ArrayRecord):
        return from_record(value)
    if isinstance(value, list):
        value = {str(place): array for place, array in enumerate(value)}
    if not isinstance(value, dict) or not all(isinstance(array, (np.ndarray, np.generic)) for array in value.values()):
        return {}
    return {str(key): torch.from_numpy(np.array(array)) for key, array in value.items()}


def _unpack_strategy(
    strategy: Strategy, prefix: str, described: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    for name, description in described.items():
        place = f"{prefix}/{name}"
        [(kind, keys)] = description.items()
        if kind == "strategy":
            _unpack_strategy(getattr(strategy, name), place, keys, tensors)
            continue
        arrays = {key: tensors[f"{place}/{key}"] for key in keys}
        setattr(strategy, name, _as_it_was(kind, arrays))


def _as_it_was(kind: str, arrays: dict[str, Tensor]) -> object:
    if kind == "ArrayRecord":
        return to_record(arrays)
    values = {key: tensor.numpy() for key, tensor in arrays.items()}
    return [*values.values()] if kind == "list" else values
