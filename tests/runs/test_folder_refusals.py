"""Folders that are refused: damaged, of another experiment, or not writable."""

import os
from pathlib import Path

import pytest
import torch
from command_cases import files, interrupt_after, interrupted, refused_resumption, tiny, tiny_run
from safetensors.torch import save
from torch import nn

from salf.errors import DataUnavailable, InvalidSetting, RunFolderError, UnsuitableModel
from salf.runs.atomic import write_atomically
from salf.runs.run import run_experiment
from salf.runs.run_files import read_experiment, read_records


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, 3)
    file = tmp_path / "checkpoint" / "state.safetensors"
    good = file.read_bytes()
    for damaged in (b"", good[:9], good[:-7], b"\0" * len(good), good[:40] + b"\xff" * 20 + good[60:]):
        file.write_bytes(damaged)
        assert f"{file} is damaged" in refused_resumption(tmp_path)
    file.write_bytes(good.replace(b'\\"round\\"', b'\\"rownd\\"'))
    assert f"{file} is damaged ('round')" in refused_resumption(tmp_path)
    write_atomically(file, save({"weights/x": torch.zeros(2)}))
    assert "is not a checkpoint of this version of salf" in refused_resumption(tmp_path)
    file.unlink()
    file.mkdir()
    assert f"{file}" in refused_resumption(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    experiment = tiny()
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path, watch=interrupt_after(3, KeyboardInterrupt()), model=_flat(64, 10))
    with pytest.raises(RunFolderError, match=r"other weights than this experiment's model has \(was the code"):
        run_experiment(experiment, tmp_path, resume=True, model=_flat(64, 11))


def _flat(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"not json", "Expecting value"),
        (b"[1, 2]", "this is not the record of a round"),
        (b'{"round": 1}', "this is not the record of a round"),
        (b"\xff\xfe", "'utf-8' codec"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, line: bytes, message: str) -> None:
    interrupted(tmp_path, 3)
    file = tmp_path / "records.jsonl"
    first, _, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + line + b"\n" + third)
    found = refused_resumption(tmp_path)
    assert f"{file} is damaged ({message}" in found
    assert found.endswith("start the run again in another folder")


@pytest.mark.parametrize("left", [0, 2])
def test_missing_records_are_noticed(tmp_path: Path, left: int) -> None:
    interrupted(tmp_path, 3)
    file = tmp_path / "records.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:left]))
    assert (
        f"{file} has {left} of the 3 rounds that were played; start the run again in another folder"
        in refused_resumption(tmp_path)
    )
    file.unlink()
    assert f"{file} has 0 of the 3 rounds" in refused_resumption(tmp_path)


def test_records_that_are_not_in_order_are_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, 3)
    file = tmp_path / "records.jsonl"
    first, second, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + third + second)
    assert "is damaged (line 2 is not of round 2); start the run again in another folder" in refused_resumption(
        tmp_path
    )


def test_a_folder_without_its_experiment_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, 3)
    (tmp_path / "experiment.toml").write_text("rounds = 'x'")
    assert "the experiment of the run in" in refused_resumption(tmp_path)
    (tmp_path / "experiment.toml").unlink()
    assert "holds records.jsonl but no experiment.toml; start the run again in another folder" in refused_resumption(
        tmp_path
    )
    with pytest.raises(
        RunFolderError, match=r"holds no run \(there is no .*experiment\.toml\); name the folder of a run"
    ):
        read_experiment(tmp_path)


@pytest.mark.parametrize("below", ["file/run", "file", "/proc/salf", "name\0", "x" * 300])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(RunFolderError, match=r"cannot (make|look into) the folder .*; choose another$"):
        tiny_run(tmp_path / below)
    assert files(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="Permission denied"):
        tiny_run(tmp_path / "run")


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    for reason, changes in (
        (DataUnavailable, {"data__name": "mnist", "data__root": str(tmp_path / "none")}),
        (InvalidSetting, {"data__name": "tensors"}),
        (UnsuitableModel, {"model__name": "factory", "model__call": "torch.nn:Identity"}),
        (
            InvalidSetting,
            {"devices__kind": "physical", "devices__availability": "on-off", "method__reach_from": "known"},
        ),
    ):
        with pytest.raises(reason):
            tiny_run(tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    with pytest.raises(InvalidSetting):
        tiny_run(tmp_path / "run", data__name="tensors")
    assert files(tmp_path / "run") == ["mine"]


def test_time_that_runs_out_of_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="round 2 never ends; choose faster devices, or a shorter deadline"):
        tiny_run(tmp_path, devices__seconds=1e308, devices__stragglers=0)
    assert len(read_records(tmp_path)) == 1
