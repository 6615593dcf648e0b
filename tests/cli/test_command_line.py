"""What the command line does with bad input: exit code 2, one clear message, no traceback, nothing half-written."""

import json
import sys
from pathlib import Path

import pytest

from salf.cli import main

SMALL = ["--set", "rounds=1", "--set", "data.clients=4"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["salf", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code if isinstance(ended.value.code, int) else 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "digitz"], "digits"),
        (["run", "--set", "data.cilents=3"], "data.clients"),
        (["run", "--set", "rounds=abc"], "rounds"),
        (["run", "--set", "rounds=-1"], "rounds"),
        (["run", "--set", "client.lr=nan"], "client.lr"),
        (["run", "--set", "client.lr=-0.1"], "client.lr"),
        (["run", "--set", "devices.stragglers=1.5"], "devices.stragglers"),
        (["run", "--set", "rounds"], "KEY=VALUE"),
        (["run", "--method", "salff"], "salf"),
        (["run", "mnist-cnn", "--set", "data.root=/nowhere"], "data.root"),
        (["run", *SMALL, "--out", "/dev/null/run"], "/dev/null/run"),
        (["run", *SMALL, "--set", "data.clients=4000"], "data.clients"),
        (["run", "--resume", "/nowhere"], "/nowhere"),
        (["run", "--set", "model.name=factory", "--set", "model.call=torch.nn:ReLU", *SMALL], "parameter"),
        (["compare", "--methods", "fedavg,nosuch"], "nosuch"),
        (["compare", "--methods", "salf,salf"], "salf"),
        (["compare", "--seeds", "0"], "seeds"),
        (["layers", "torch.nn:ReLU"], "parameter"),
        (["layers", "nosuch:thing"], "nosuch"),
        (["layers", "digits", "--example-shape", "a,b"], "--example-shape"),
    ],
)
def test_bad_input_is_one_message(
    arguments: list[str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("salf: ")
    assert named in printed.err
    assert "Traceback" not in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.partial"))


def test_damaged_data_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").write_bytes(b"not an image")
    assert call(monkeypatch, "run", "mnist-mlp", "--set", f"data.root={tmp_path}") == 2
    assert "train-images-idx3-ubyte" in capsys.readouterr().err


def test_a_folder_of_another_experiment_is_not_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = str(tmp_path / "run")
    assert call(monkeypatch, "run", *SMALL, "--out", folder) == 0
    capsys.readouterr()
    assert call(monkeypatch, "run", "digits", "--set", "rounds=2", "--resume", folder) == 2
    assert "rounds" in capsys.readouterr().err
    assert call(monkeypatch, "run", *SMALL, "--out", folder) == 2
    assert "--resume" in capsys.readouterr().err


def test_machines_get_one_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(monkeypatch, "run", *SMALL, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rounds"] == 1
    assert call(monkeypatch, "layers", "digits", "--json") == 0
    assert [row["layer"] for row in json.loads(capsys.readouterr().out)["layers"]] == ["conv1", "conv2", "fc1", "fc2"]
    compared = ["compare", *SMALL, "--seeds", "1", "--jobs", "1", "--out", str(tmp_path / "all"), "--json"]
    assert call(monkeypatch, *compared) == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)["methods"]] == ["fedavg", "salf", "drop"]
    assert {"comparison.json", "accuracy.png", "accuracy.svg"} <= {path.name for path in (tmp_path / "all").iterdir()}
