"""The folder of a federation, from which a run continues after the server has died."""

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import BaseFileLock
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from salf.errors import RunFolderError
from salf.flower.server.deadlines import RoundTimes
from salf.flower.server.federation_record import FederationRecord, FederationState, log
from salf.flower.wire import from_record, to_record
from salf.runs import Attachment, load_checkpoint, lock_folder, save_checkpoint, write_atomically
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


class FederationFolder:
    """A folder with one line per round in `records.jsonl`, and the last round's `checkpoint/state.safetensors`.

    Whatever process dies at any time, the folder holds the state after the last complete round. An interrupted round
    runs again.

    Args:
        path: The folder, which is created if necessary.
        patience_seconds: How long to wait for another server app that uses the folder.
    """

    def __init__(self, path: Path, patience_seconds: float = 120.0) -> None:
        self.path, self.patience_seconds = path, patience_seconds
        self._records, self._checkpoint = path / "records.jsonl", path / "checkpoint" / "state.safetensors"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Create the folder and keep other server apps out until the block ends or the process dies.

        After the SuperLink has died, its server app needs some time to notice; this method waits for it.

        Raises:
            RunFolderError: The folder cannot be created, or another app still uses it after `patience_seconds`.
        """
        try:
            self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot create the folder {self.path}: {error}; choose another folder") from error
        lock = self._lock()
        try:
            yield
        finally:
            lock.release()

    def _lock(self) -> BaseFileLock:
        """Lock the folder, with a line in the log if another app holds it."""
        try:
            return lock_folder(self.path, patience_seconds=0)
        except RunFolderError:
            log.warning("another server app uses %s; waiting for it to end", self.path)
        return lock_folder(self.path, self.patience_seconds)

    def load(self, strategy: Strategy) -> tuple[FederationState, Result] | None:
        """Return the state and the results so far, and restore the state of `strategy`; None for a new folder.

        Raises:
            RunFolderError: The folder is damaged, or another strategy or version wrote it.
        """
        if not self._checkpoint.exists():
            write_atomically(self._records, b"")
            return None
        server, attachment = load_checkpoint(self._checkpoint)
        self._keep_records(server.round)
        try:
            return unpack(server, attachment, strategy)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RunFolderError(
                f"another strategy or version wrote the checkpoint {self._checkpoint} "
                f"({type(error).__name__}: {error}); start a new run in another folder"
            ) from error

    def save(self, state: FederationState, result: Result, strategy: Strategy, record: FederationRecord) -> None:
        """Write a round's record, then its checkpoint.

        Args:
            state: The state after the round.
            result: The results of all rounds so far.
            strategy: The wrapped strategy.
            record: The round's record.

        Raises:
            RunFolderError: The folder cannot be written.
        """
        try:
            with self._records.open("ab") as file:
                file.write(f"{record.to_json()}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(
                f"cannot write {self._records}: {error.strerror or error}; check the disk and start the app again"
            ) from error
        save_checkpoint(self._checkpoint, state.server, pack(state, result, strategy))

    def records(self) -> list[FederationRecord]:
        """Return the records of all complete rounds, without a last line that a crash has cut short.

        Raises:
            RunFolderError: The records cannot be read, or are damaged.
        """
        try:
            lines = self._records.read_bytes().split(b"\n")[:-1]
            return [FederationRecord.from_json(line.decode()) for line in lines]
        except OSError as error:
            raise RunFolderError(
                f"cannot read {self._records}: {error.strerror or error}; check the path and its permissions"
            ) from error
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{self._records} is damaged ({error}); start a new run in another folder") from error

    def _keep_records(self, rounds: int) -> None:
        """Drop the record of a round whose checkpoint was not written."""
        kept = self.records()[:rounds]
        if len(kept) < rounds:
            raise RunFolderError(f"{self._records} lacks earlier rounds; start a new run in another folder")
        write_atomically(self._records, "".join(f"{record.to_json()}\n" for record in kept).encode())
