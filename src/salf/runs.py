"""A run and its folder: what was asked, what happened, the model that came out, and how to go on after a crash.

The folder holds `experiment.toml` (complete), `records.jsonl` (one line per round), `checkpoint/state.safetensors` and,
at the end, `model.safetensors`. A process killed at any instant leaves a folder from which the run goes on as if it had
never been killed: rounds after the last checkpoint are played again, with the same result.
"""

import os
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TextIO

import torch
from safetensors.torch import save as save_tensors
from torch import nn

from salf.checkpoint import load_checkpoint, plain_tensors, save_checkpoint, write_atomically
from salf.data import Dataset
from salf.devices import Job
from salf.errors import RunFolderError
from salf.experiment import Experiment
from salf.records import RoundRecord, final_accuracy
from salf.simulation import ServerState, Simulation

_CHECKPOINT_SECONDS = 2.0  # of real time: what a crash costs at most
_FORWARD_WORTH_THREADS = 2e6  # floating-point operations per example


@dataclass(frozen=True)
class Run:
    """A finished run: its experiment, one record per round, and its folder if it was kept."""

    experiment: Experiment
    records: tuple[RoundRecord, ...]
    folder: Path | None = None

    @property
    def accuracy(self) -> float:
        """The final test accuracy, between 0 and 1."""
        return final_accuracy(self.records)

    @property
    def time_s(self) -> float:
        """The virtual time at the end."""
        return self.records[-1].time_s


def run_experiment(
    experiment: Experiment,
    out: Path | str | None = None,
    resume: bool = False,  # noqa: FBT001, FBT002 - part of the contract of names
    *,
    watch: Callable[[RoundRecord], None] | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
) -> Run:
    """Run an experiment, keeping it in the folder `out` if one is given.

    `resume` goes on with a run that was interrupted in that folder, or starts it if it had not got that far. `watch` is
    called with every record, those of earlier rounds included. Raises `RunFolderError` when the folder cannot be
    written, already holds a run, or holds one of another experiment.

    >>> run = run_experiment(Experiment.load("digits", rounds=2, **{"data.clients": 4}))
    >>> len(run.records), run.time_s
    (2, 2.0)
    """
    folder = None if out is None else RunFolder.prepare(Path(out), experiment, resume=resume)
    simulation = Simulation(experiment, model=model, dataset=dataset)
    with _suitable_threads(simulation.job):
        if folder is None:
            return Run(experiment, tuple(_play(simulation, simulation.initial_state(), None, [], watch)))
        state, records = folder.restore() or (simulation.initial_state(), [])
        with folder:
            played = _play(simulation, state, folder, records, watch)
    return Run(experiment, tuple(played), folder.path)


@contextmanager
def _suitable_threads(job: Job) -> Iterator[None]:
    """Compute on one thread where the model is so small that sharing it out costs more than it saves."""
    threads = torch.get_num_threads()
    if job.costs.forward < _FORWARD_WORTH_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _play(
    simulation: Simulation,
    state: ServerState,
    folder: "RunFolder | None",
    records: list[RoundRecord],
    watch: Callable[[RoundRecord], None] | None,
) -> list[RoundRecord]:
    tell = watch or _ignore
    for record in records:
        tell(record)
    while state.round < simulation.experiment.rounds:
        state, record = simulation.play(state)
        records.append(record)
        if folder is not None:
            folder.append(record, state)
        tell(record)
    if folder is not None:
        folder.finish(state)
    return records


def _ignore(_: RoundRecord) -> None:
    """Watch nothing."""


class RunFolder:
    """A run's folder, open for writing while it is entered as a context."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: TextIO | None = None
        self._saved_at = time.monotonic()
        self._unsaved: ServerState | None = None

    @classmethod
    def prepare(cls, path: Path, experiment: Experiment, *, resume: bool) -> "RunFolder":
        """Make the folder and write the experiment into it, or check that it holds this very experiment."""
        folder = cls(path)
        try:
            folder._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot make the folder {path}: {error.strerror}; choose another --out") from error
        if folder._experiment.exists():
            if not resume:
                raise RunFolderError(f"{path} already holds a run; go on with it (--resume) or choose another --out")
            differing = _differences(cls.read_experiment(path), experiment)
            if differing:
                raise RunFolderError(f"{path} holds a run of another experiment: {'; '.join(differing)}")
        write_atomically(folder._experiment, _movable(experiment).to_toml().encode())
        return folder

    @staticmethod
    def read_experiment(path: Path) -> Experiment:
        """Read the experiment of the run in a folder. Raises `RunFolderError` if there is none."""
        file = path / "experiment.toml"
        if not file.is_file():
            raise RunFolderError(f"{path} holds no run (there is no {file})")
        return Experiment.load(file)

    @staticmethod
    def read_records(path: Path) -> list[RoundRecord]:
        """Read the records of the run in a folder; a last line that a crash has cut short does not count."""
        file = path / "records.jsonl"
        try:
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
            return [RoundRecord.from_json(line) for line in lines if line.endswith("\n")]
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{file} is damaged ({error}); start the run anew in another folder") from error

    def restore(self) -> tuple[ServerState, list[RoundRecord]] | None:
        """Return the last checkpoint and the records up to it, dropping later ones; None if there is no checkpoint."""
        if not self._checkpoint.exists():
            write_atomically(self._record_file, b"")
            return None
        state = load_checkpoint(self._checkpoint)
        records = self.read_records(self.path)[: state.round]
        if len(records) < state.round:
            raise RunFolderError(f"{self._record_file} lacks rounds that were played; start the run anew elsewhere")
        write_atomically(self._record_file, "".join(f"{record.to_json()}\n" for record in records).encode())
        return state, records

    def append(self, record: RoundRecord, state: ServerState) -> None:
        """Write a round's record and, now and then, a checkpoint."""
        try:
            if self._records is None:
                self._records = self._record_file.open("a", encoding="utf-8")
            self._records.write(f"{record.to_json()}\n")
            self._records.flush()
        except OSError as error:
            raise RunFolderError(f"cannot write {self._record_file}: {error.strerror}") from error
        self._unsaved = state
        if time.monotonic() - self._saved_at >= _CHECKPOINT_SECONDS:
            self._save()

    def finish(self, state: ServerState) -> None:
        """Write the final model."""
        self._save()
        write_atomically(self.path / "model.safetensors", save_tensors(plain_tensors(state.weights)))

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
                self._records.close()

    def _save(self) -> None:
        """Write a checkpoint of the last round, once its record is safely on the disk."""
        if self._unsaved is None or self._records is None:
            return
        try:
            os.fsync(self._records.fileno())
        except OSError as error:
            raise RunFolderError(f"cannot write {self._record_file}: {error.strerror}") from error
        save_checkpoint(self._checkpoint, self._unsaved)
        self._unsaved, self._saved_at = None, time.monotonic()

    @property
    def _experiment(self) -> Path:
        return self.path / "experiment.toml"

    @property
    def _record_file(self) -> Path:
        return self.path / "records.jsonl"

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint" / "state.safetensors"


def _movable(experiment: Experiment) -> Experiment:
    """Write the data's folder in full, so that the run can go on from wherever it is resumed."""
    root = experiment.data.root
    return experiment if root is None else replace(experiment, data=replace(experiment.data, root=root.resolve()))


def _differences(known: Experiment, asked: Experiment) -> list[str]:
    """Name the settings that differ; where the data lies is not one of them."""
    before, after = (_flat(tomllib.loads(experiment.to_toml())) for experiment in (known, asked))
    keys = sorted((before.keys() | after.keys()) - {"data.root"})
    changed = [key for key in keys if before.get(key) != after.get(key)]
    return [f"{key} is {before.get(key)!r} there, {after.get(key)!r} here" for key in changed]


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
