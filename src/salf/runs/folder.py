"""A run's folder while the run writes into it."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from filelock import BaseFileLock, FileLock, Timeout
from safetensors.torch import save as save_tensors
from torch import Tensor

from salf.data import Dataset
from salf.errors import RunFolderError
from salf.experiment import Experiment
from salf.records import RoundRecord
from salf.report import render_report
from salf.runs.atomic import ELSEWHERE, make_folder, unwritable, write_atomically
from salf.runs.checkpoint import Attachment, load_checkpoint, plain_tensors, save_checkpoint
from salf.runs.run_files import RunFiles, check_folder, read_reasons, read_records, reported_run
from salf.simulation import ServerState, Simulation

_CHECKPOINT_SHARE = 0.1  # of the time may go into checkpoints
LOCK_NAME = ".lock"  # an empty file that stays in the folder: removing it could let two processes in
_PATIENCE_SECONDS = 5.0  # workers of a killed comparison leave when their round is over


class RunFolder:
    """A run's folder, open for writing while it is entered as a context.

    A run that fails before its first round ends leaves no folder; a run that is interrupted later saves what it has.

    Opening makes the folder and writes the experiment, or checks that the folder holds this experiment.

    Args:
        path: The folder; it is made if it does not exist.
        experiment: What the run computes.
        resume: Whether a run that is already there continues.
        checkpoint_seconds: The least time between two checkpoints, in seconds of real time.
        unreproducible: Why the settings alone do not reproduce the run, such as "model was given in Python".

    Raises:
        RunFolderError: The folder cannot take this run, or another process is at work in it.
    """

    def __init__(
        self,
        path: Path,
        experiment: Experiment,
        *,
        resume: bool,
        checkpoint_seconds: float = 2.0,
        unreproducible: Sequence[str] = (),
    ) -> None:
        self.path, self._files = path, RunFiles(path)
        self._checkpoint_seconds = checkpoint_seconds
        self._save_at = time.monotonic() + checkpoint_seconds
        self._data = Attachment()
        self._records: BinaryIO | None = None
        self._unsaved: ServerState | None = None
        check_folder(path, experiment, resume=resume)
        make_folder(path)
        make_folder(self._files.checkpoint.parent)
        self._lock = lock_folder(path)
        try:
            check_folder(path, experiment, resume=resume)  # another process may have come in between
            self._is_new = not self._files.experiment.exists()
            reasons = unreproducible if self._is_new else read_reasons(path)  # how the run began
            also = [reason for reason in reasons if reason not in experiment.unreproducible()]
            self._settings = _movable(experiment).to_toml(also)
            write_atomically(self._files.experiment, self._settings.encode())
        except BaseException:
            self._lock.release()
            raise

    def keep_timeline(self, simulation: Simulation) -> None:
        """Write each client's activities in a typical round."""
        write_atomically(self._files.timeline, simulation.timeline().to_json())

    def restore(self, initial: ServerState, dataset: Dataset) -> tuple[ServerState, list[RoundRecord]]:
        """Return the last checkpoint and the records up to it; later records are dropped.

        Args:
            initial: The state before the first round, which a folder without a checkpoint resumes from.
            dataset: The data that the run computes on.

        Raises:
            RunFolderError: The checkpoint was made on other data, or does not fit the initial state.
        """
        records = read_records(self.path)
        self._data = Attachment(notes={"data": dataset.fingerprint()})
        state = self._load(initial) if self._files.checkpoint.exists() else initial
        if len(records) < state.round:
            have = f"{len(records)} of the {state.round} rounds that were played"
            raise RunFolderError(f"{self._files.records} has {have}; {ELSEWHERE}")
        kept = records[: state.round]
        write_atomically(self._files.records, "".join(f"{record.to_json()}\n" for record in kept).encode())
        return state, kept

    def append(self, record: RoundRecord, state: ServerState) -> None:
        """Write a round's record and, if the last one is old enough, a checkpoint."""
        try:
            if self._records is None:
                self._records = self._files.records.open("ab")
            self._records.write(f"{record.to_json()}\n".encode())
            self._records.flush()
        except OSError as error:
            raise unwritable(self._files.records, error) from error
        self._unsaved = state
        if time.monotonic() >= self._save_at:
            self._save()

    def finish(self, simulation: Simulation, state: ServerState, records: Sequence[RoundRecord]) -> None:
        """Write the final model, then the page about the run."""
        self._save()
        write_atomically(self._files.model, save_tensors(plain_tensors(state.weights)))
        run = reported_run(self._settings, records, simulation.timeline())
        write_atomically(self._files.report, render_report([run]).encode())

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not isinstance(error, RunFolderError):
                self._save()
        finally:
            if self._records is not None:
                with suppress(OSError):  # every line was flushed; a failed write was reported then
                    self._records.close()
            elif self._is_new and isinstance(error, Exception):
                self._remove()
            self._lock.release()

    def _load(self, initial: ServerState) -> ServerState:
        """Load the checkpoint, and check that it belongs to the data and the model."""
        state, known = load_checkpoint(self._files.checkpoint)
        if known.notes and known.notes != self._data.notes:
            changed = f"the checkpoint {self._files.checkpoint} was made on other data than is there now"
            raise RunFolderError(f"{changed} (were the files of the data set changed?); restore them, or {ELSEWHERE}")
        if _shapes(state.weights) != _shapes(initial.weights):
            changed = f"the checkpoint {self._files.checkpoint} holds other weights than this experiment's model has"
            raise RunFolderError(f"{changed} (was the code that builds it changed?); {ELSEWHERE}")
        return state

    def _save(self) -> None:
        """Write a checkpoint of the last round, once its record is safely on the disk."""
        if self._unsaved is None or self._records is None:
            return
        began = time.monotonic()
        try:
            os.fsync(self._records.fileno())
        except OSError as error:
            raise unwritable(self._files.records, error) from error
        save_checkpoint(self._files.checkpoint, self._unsaved, self._data)
        self._unsaved, ended = None, time.monotonic()
        self._save_at = ended + max(self._checkpoint_seconds, (ended - began) / _CHECKPOINT_SHARE)

    def _remove(self) -> None:
        """Remove the folder of a run that never began; foreign files in it stay."""
        files = self._files
        with suppress(OSError):
            for file in (files.experiment, files.timeline, files.records):
                file.unlink(missing_ok=True)
            files.checkpoint.parent.rmdir()
            (self.path / LOCK_NAME).unlink(missing_ok=True)
            self.path.rmdir()


def lock_folder(folder: Path, patience_seconds: float = _PATIENCE_SECONDS) -> BaseFileLock:
    """Lock a folder against other processes; call `release` on the result, or let the process end.

    File systems without locks are used unlocked.

    Args:
        folder: An existing folder.
        patience_seconds: How long to wait while another process holds the lock.

    Raises:
        RunFolderError: Another process holds the lock for longer than that.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     lock = lock_folder(Path(folder))
    ...     try:
    ...         lock_folder(Path(folder), patience_seconds=0.0)
    ...     except RunFolderError as error:
    ...         print(str(error).replace(folder, "DIR"))
    ...     lock.release()
    another process is at work on the run in DIR; wait until it ends, stop it, or choose another folder
    """
    lock = FileLock(folder / LOCK_NAME, timeout=patience_seconds, poll_interval=0.1, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunFolderError(
            f"another process is at work on the run in {folder}; wait until it ends, stop it, or choose another folder"
        ) from error
    except OSError:  # no locks here; a folder that cannot be written to is refused at the first write
        pass
    return lock


def _movable(experiment: Experiment) -> Experiment:
    """Write the data's folder as an absolute path, so that the run resumes from any working directory."""
    root = experiment.data.root
    if root is None:
        return experiment
    with suppress(RuntimeError):  # no such user: loading the data gives a better reason
        root = root.expanduser()
    return replace(experiment, data=replace(experiment.data, root=root.resolve()))


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the shape and type of each tensor."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
