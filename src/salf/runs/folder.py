"""A run's folder."""

import os
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from salf.data import Dataset
from salf.errors import InvalidSetting, RunFolderError
from salf.experiment import Experiment
from salf.records import RoundRecord, TimeLine
from salf.report import ReportedRun, explanation_of, flatten, render_report
from salf.runs.atomic import write_atomically
from salf.runs.checkpoint import Attachment, load_attached, plain_tensors, save_checkpoint
from salf.runs.locks import FolderLock
from salf.simulation import ServerState, Simulation

_CHECKPOINT_SHARE = 0.1  # of the time may go into checkpoints
_NO_RESULT = ("data.root", "evaluate.target", "expected")  # settings that change nothing about what a run gives


class RunFolder:
    """A run's folder, open for writing while it is entered as a context.

    A run that fails before its first round is over leaves no folder; one that is interrupted later saves what it has.
    """

    def __init__(self, path: Path, checkpoint_seconds: float = 2.0) -> None:
        self.path = path
        self._checkpoint_seconds = checkpoint_seconds
        self._save_at = time.monotonic() + checkpoint_seconds
        self._is_new = False
        self._lock: FolderLock | None = None
        self._data = Attachment()
        self._records: BinaryIO | None = None
        self._unsaved: ServerState | None = None

    @classmethod
    def open(cls, path: Path, experiment: Experiment, *, resume: bool, checkpoint_seconds: float = 2.0) -> "RunFolder":
        """Make the folder and write the experiment into it, or check that it holds this very experiment.

        Until it is left no other process can open it.
        """
        cls.check(path, experiment, resume=resume)
        folder = cls(path, checkpoint_seconds)
        try:
            folder._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise RunFolderError(f"cannot make the folder {path}: {_reason(error)}; choose another") from error
        folder._lock = FolderLock(path)
        try:
            cls.check(path, experiment, resume=resume)  # another process may have come in between
            folder._is_new = not folder._experiment.exists()
            write_atomically(folder._experiment, _movable(experiment).to_toml().encode())
        except BaseException:
            folder._lock.release()
            raise
        return folder

    @classmethod
    def check(cls, path: Path, experiment: Experiment, *, resume: bool) -> None:
        """Refuse a folder that holds a run already or, with `resume`, one of another experiment; change nothing."""
        folder = cls(path)
        try:
            parts = (folder._experiment, folder._record_file, folder._checkpoint, folder._model)
            others = (path / "report.html", path / "timeline.json")
            known = [part for part in (*parts, *others) if part.exists()]
        except OSError as error:
            raise RunFolderError(f"cannot look into the folder {path}: {_reason(error)}; choose another") from error
        if known and not resume:
            raise RunFolderError(
                f"{path} already holds a run; go on with it (salf run --resume {path}; in salf compare add --resume; "
                "in Python resume=True) or choose another folder"
            )
        if known and folder._experiment not in known:
            raise RunFolderError(f"{path} holds {known[0].name} but no experiment.toml; start the run anew elsewhere")
        differing = _differences(cls.read_experiment(path), experiment) if known else []
        if differing:
            raise RunFolderError(
                f"{path} holds a run of another experiment, in which {'; '.join(differing)}; "
                "resume it with its own settings, or choose another folder"
            )

    @classmethod
    def read_experiment(cls, path: Path) -> Experiment:
        """Read the experiment of the run in a folder. Raises `RunFolderError` if there is none."""
        folder = cls(path)
        file = folder._experiment
        try:
            return Experiment.load(file)
        except InvalidSetting as error:
            if file.exists():
                raise RunFolderError(f"the experiment of the run in {path} cannot be read: {error}") from error
            raise RunFolderError(f"{path} holds no run (there is no {file}); name the folder of one") from error

    @classmethod
    def read_records(cls, path: Path) -> list[RoundRecord]:
        """Read the records of the run in a folder; a last line that a crash has cut short does not count."""
        folder = cls(path)
        file = folder._record_file
        try:
            lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
            records = [RoundRecord.from_json(line.decode()) for line in lines]
        except OSError as error:
            raise RunFolderError(f"cannot read {file}: {_reason(error)}; mend that") from error
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{file} is damaged ({error}); start the run anew elsewhere") from error
        for number, record in enumerate(records, start=1):
            if record.round != number:
                raise RunFolderError(
                    f"{file} is damaged (line {number} is not of round {number}); start the run anew elsewhere"
                )
        return records

    @classmethod
    def read(cls, path: Path) -> ReportedRun:
        """Read what a report tells about the run in a folder, which need not be finished.

        A folder without a time-line, which earlier versions left, is read without. Raises `RunFolderError` if there is
        no run, no round of it has ended, or a file is damaged.
        """
        experiment, records = cls.read_experiment(path), cls.read_records(path)
        if not records:
            raise RunFolderError(f"no round of the run in {path} has ended yet: there is nothing to report")
        folder = cls(path)
        file = folder._timeline
        try:
            timeline = TimeLine.from_json(file.read_bytes()) if file.exists() else None
            explanation = explanation_of(type(experiment.method))
            return ReportedRun(experiment.to_toml(), tuple(records), timeline, explanation)
        except OSError as error:
            raise RunFolderError(f"cannot read {file}: {_reason(error)}") from error
        except ValueError as error:
            raise RunFolderError(f"{file} is damaged; without it the report has no time-line: remove it") from error

    def keep_timeline(self, simulation: Simulation) -> None:
        """Write who does what when in a typical round."""
        write_atomically(self._timeline, simulation.timeline().to_json())

    def restore(self, initial: ServerState, dataset: Dataset) -> tuple[ServerState, list[RoundRecord]]:
        """Return the last checkpoint, or else the initial state, and the records up to it; later ones are dropped.

        Raises `RunFolderError` if the checkpoint was made on other data, or does not fit the initial state.
        """
        records = self.read_records(self.path)
        self._data = Attachment(notes={"data": dataset.fingerprint()})
        state = initial
        if self._checkpoint.exists():
            state, known = load_attached(self._checkpoint)
            if known.notes and known.notes != self._data.notes:
                raise RunFolderError(
                    f"the checkpoint {self._checkpoint} was made on other data than is there now (were the files of "
                    "the data set changed?); bring those back, or start the run anew elsewhere"
                )
            if _shapes(state.weights) != _shapes(initial.weights):
                raise RunFolderError(
                    f"the checkpoint {self._checkpoint} holds other weights than this experiment's model has (was the "
                    "code that builds it changed?); start the run anew elsewhere"
                )
        if len(records) < state.round:
            raise RunFolderError(
                f"{self._record_file} has {len(records)} of the {state.round} rounds that were played; "
                "start the run anew elsewhere"
            )
        kept = records[: state.round]
        write_atomically(self._record_file, "".join(f"{record.to_json()}\n" for record in kept).encode())
        return state, kept

    def append(self, record: RoundRecord, state: ServerState) -> None:
        """Write a round's record and, now and then, a checkpoint."""
        try:
            if self._records is None:
                self._records = self._record_file.open("ab")
            self._records.write(f"{record.to_json()}\n".encode())
            self._records.flush()
        except OSError as error:
            raise RunFolderError(f"cannot write {self._record_file}: {_reason(error)}; mend that and go on") from error
        self._unsaved = state
        if time.monotonic() >= self._save_at:
            self._save()

    def finish(self, simulation: Simulation, state: ServerState, records: Sequence[RoundRecord]) -> None:
        """Write the final model, and the page about the run."""
        self._save()
        write_atomically(self._model, save_tensors(plain_tensors(state.weights)))
        settings, explanation = _movable(simulation.experiment).to_toml(), explanation_of(type(simulation.experiment.method))
        run = ReportedRun(settings, tuple(records), simulation.timeline(), explanation)
        write_atomically(self.path / "report.html", render_report([run]).encode())

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
                with suppress(OSError):  # every line was flushed; what could not be written was reported then
                    self._records.close()
            elif self._is_new and isinstance(error, Exception):
                self._remove()
            if self._lock is not None:
                self._lock.release()

    def _save(self) -> None:
        """Write a checkpoint of the last round, once its record is safely on the disk."""
        if self._unsaved is None or self._records is None:
            return
        began = time.monotonic()
        try:
            os.fsync(self._records.fileno())
        except OSError as error:
            raise RunFolderError(f"cannot write {self._record_file}: {_reason(error)}; mend that and go on") from error
        save_checkpoint(self._checkpoint, self._unsaved, self._data)
        self._unsaved, ended = None, time.monotonic()
        self._save_at = ended + max(self._checkpoint_seconds, (ended - began) / _CHECKPOINT_SHARE)

    def _remove(self) -> None:
        """Remove the folder of a run that never began."""
        with suppress(OSError):
            self._experiment.unlink(missing_ok=True)
            self._timeline.unlink(missing_ok=True)
            self._record_file.unlink(missing_ok=True)
            self._checkpoint.parent.rmdir()
            self.path.rmdir()

    @property
    def _experiment(self) -> Path:
        return self.path / "experiment.toml"

    @property
    def _timeline(self) -> Path:
        return self.path / "timeline.json"

    @property
    def _record_file(self) -> Path:
        return self.path / "records.jsonl"

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint" / "state.safetensors"

    @property
    def _model(self) -> Path:
        return self.path / "model.safetensors"


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _movable(experiment: Experiment) -> Experiment:
    """Write the data's folder in full, so that the run can go on from wherever it is resumed."""
    root = experiment.data.root
    if root is None:
        return experiment
    with suppress(RuntimeError):  # nobody's home: the data will be refused with a better reason
        root = root.expanduser()
    return replace(experiment, data=replace(experiment.data, root=root.resolve()))


def _differences(known: Experiment, asked: Experiment) -> list[str]:
    """Name the settings that differ, leaving out those on which the result does not depend."""
    before, after = (flatten(tomllib.loads(experiment.to_toml())) for experiment in (known, asked))
    changed = [
        key
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(_NO_RESULT)
    ]
    return [f"{key} is {_shown(before.get(key))}, not {_shown(after.get(key))}" for key in changed]


def _shown(value: object) -> str:
    return "not set" if value is None else repr(value)


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
