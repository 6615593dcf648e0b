"""What keeps a run from going wrong in silence: one process at a time in its folder, and the data it began with."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from command_cases import content, refusal, salf, tiny, tiny_run
from filelock import BaseFileLock

from salf.data import Dataset, load
from salf.errors import RunFolderError
from salf.records.rounds import RoundRecord
from salf.runs import lock_folder, read_experiment
from salf.runs.checkpoint import load_checkpoint, save_checkpoint
from salf.runs.folder import LOCK_NAME, RunFolder
from salf.runs.run import run_experiment

PARTS = ("inputs", "labels", "test_inputs", "test_labels")
HOLD = """
import sys
from filelock import FileLock

lock = FileLock(sys.argv[1])
lock.acquire()
print("here", flush=True)
sys.stdin.read()
"""


def interrupted(folder: Path, dataset: Dataset | None = None) -> None:
    """Leave a run behind that was interrupted after three rounds."""

    def watch(record: RoundRecord) -> None:
        if record.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(tiny(), folder, watch=watch, dataset=dataset)


@contextmanager
def held_by_a_process(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Have another process lock a folder, and kill it at the end."""
    command = [sys.executable, "-c", HOLD, str(folder / LOCK_NAME)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salf.runs.folder.lock_folder", partial(lock_folder, patience_seconds=0.0))


@pytest.mark.usefixtures("impatient")
def test_two_processes_are_not_at_work_in_one_folder(tmp_path: Path) -> None:
    whole = tiny_run(tmp_path / "whole")
    interrupted(tmp_path / "run")
    before = content(tmp_path / "run")
    with held_by_a_process(tmp_path / "run") as process:
        message = refusal("run", "--resume", tmp_path / "run")
        assert message == (
            f"another process is at work on the run in {tmp_path / 'run'}; wait until it ends, stop it, or "
            "choose another folder"
        )
        assert content(tmp_path / "run") == before
        process.send_signal(signal.SIGKILL)  # the lock dies with it
        process.wait()
        assert run_experiment(tiny(), tmp_path / "run", resume=True).records == whole.records
    assert content(tmp_path / "run") == content(tmp_path / "whole")


@pytest.mark.usefixtures("impatient")
def test_a_folder_is_free_again_however_it_was_left(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for resume in (False, True):
        with RunFolder(tmp_path / "run", tiny(), resume=resume):
            assert "another process is at work" in refusal("run", "--resume", tmp_path / "run")
    with pytest.raises(RunFolderError, match="already holds a run"):
        RunFolder(tmp_path / "run", tiny(), resume=False)
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path / "run", tiny(), resume=True):
        raise ZeroDivisionError
    assert salf("run", "--resume", tmp_path / "run").code == 0


def test_a_run_that_ended_while_another_waited_for_its_folder_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is looked at again once it is locked."""

    def play_first(folder: Path) -> BaseFileLock:
        monkeypatch.setattr("salf.runs.folder.lock_folder", lock_folder)
        tiny_run(folder)
        return lock_folder(folder)

    monkeypatch.setattr("salf.runs.folder.lock_folder", play_first)
    with pytest.raises(RunFolderError, match="already holds a run"):
        tiny_run(tmp_path / "run", seed=5)
    assert read_experiment(tmp_path / "run") == tiny()


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    first = lock_folder(tmp_path)
    releasing = threading.Timer(0.2, first.release)
    releasing.start()
    lock_folder(tmp_path).release()
    releasing.join()


def test_where_folders_cannot_be_locked_a_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert tiny_run(tmp_path / "run").records == tiny_run().records


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    digits = load("digits")
    whole = tiny_run(tmp_path / "whole")
    interrupted(tmp_path / "run")
    other = digits.test_inputs.clone()
    other[7, 0, 3, 3] += 1
    with pytest.raises(RunFolderError, match=r"was made on other data than is there now .*; restore them, or"):
        run_experiment(tiny(), tmp_path / "run", resume=True, dataset=replace(digits, test_inputs=other))
    checkpoint = tmp_path / "run" / "checkpoint" / "state.safetensors"
    state, attached = load_checkpoint(checkpoint)
    assert attached.notes == {"data": digits.fingerprint()}
    assert run_experiment(tiny(), tmp_path / "run", resume=True).records == whole.records
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    save_checkpoint(checkpoint, state)  # as earlier versions did, which knew nothing of the data
    assert run_experiment(tiny(), tmp_path / "run", resume=True).records == whole.records


@pytest.mark.parametrize("part", PARTS)
def test_a_fingerprint_tells_data_apart(part: str) -> None:
    digits = load("digits")
    tensor: torch.Tensor = getattr(digits, part)

    def with_part(values: torch.Tensor) -> str:
        changed = {**{name: getattr(digits, name) for name in PARTS}, part: values}
        return Dataset("digits", **changed, num_classes=10).fingerprint()

    changed = tensor.clone()
    changed[-1] += 1
    assert with_part(changed) != digits.fingerprint()
    assert with_part(tensor[:-1]) != digits.fingerprint()
    elsewhere = torch.stack([tensor, tensor], dim=-1)[..., 0]  # the same values, with gaps between them
    assert not elsewhere.is_contiguous()
    assert with_part(elsewhere) == digits.fingerprint()
