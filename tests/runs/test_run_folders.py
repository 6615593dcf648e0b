"""A run's folder: what is in it, how a run goes on, and what is refused."""

import html
import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_cases import content, files, interrupt_after, interrupted, refused_resumption, tiny, tiny_run
from safetensors.torch import load_file
from torch import Tensor, nn

from salf.data import load
from salf.errors import RunFolderError
from salf.experiment.experiment import Experiment
from salf.models import build
from salf.records.rounds import RoundRecord
from salf.runs import atomic, checkpoint, folder as runs
from salf.runs.run import run_experiment
from salf.runs.run_files import read_experiment, read_records
from salf.simulation.evaluator import evaluate
from salf.simulation.server_state import ServerState

PARTS = [
    ".lock",
    "checkpoint/state.safetensors",
    "experiment.toml",
    "model.safetensors",
    "records.jsonl",
    "report.html",
    "timeline.json",
]


def test_a_folder_holds_settings_records_checkpoint_model_and_report(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "deep" / "run")
    assert run.folder == tmp_path / "deep" / "run"
    assert files(run.folder) == PARTS
    assert Experiment.load(run.folder / "experiment.toml") == run.experiment == tiny()
    assert tuple(read_records(run.folder)) == run.records
    lines = (run.folder / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(json.loads(line)["contributors"], list) for line in lines)
    page = (run.folder / "report.html").read_text()
    assert "digits · salf · seed 0" in page
    assert 'partition = "iid"' in html.unescape(page)


def test_two_runs_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, second = (content(tiny_run(tmp_path / name).folder or tmp_path) for name in "ab")
    assert first == second
    other = content(tiny_run(tmp_path / "c", seed=1).folder or tmp_path)
    assert other["model.safetensors"] != first["model.safetensors"]
    assert tiny_run().records == tiny_run(tmp_path / "d").records


@pytest.mark.parametrize("model", ["mlp", "residual"])
def test_the_model_that_is_kept_has_the_accuracy_that_was_recorded(tmp_path: Path, model: str) -> None:
    run = tiny_run(tmp_path, model__name=model)
    dataset = load("digits")
    network = build(run.experiment.model, dataset.input_shape, dataset.num_classes, seed=7)
    network.load_state_dict(load_file(tmp_path / "model.safetensors"))
    accuracy, loss = evaluate(network, dataset.test_inputs, dataset.test_labels)
    assert (accuracy, loss) == (run.accuracy, run.records[-1].loss)


class Tied(nn.Module):
    """Encoder and decoder share their weight; the mean is a buffer that does not travel through the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(64, 12), nn.Linear(12, 64)
        self.decode.weight = nn.Parameter(self.encode.weight.detach().T.clone())
        self.again = nn.Linear(64, 12)
        self.again.weight, self.again.bias = self.encode.weight, self.encode.bias
        self.norm, self.head = nn.BatchNorm1d(12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.norm(self.again(self.decode(self.encode(x.flatten(1))).relu())))
        return scores


def test_tied_weights_are_kept_and_resumed(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = Tied()
    whole = run_experiment(tiny(), tmp_path / "whole", model=model)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(tiny(), tmp_path / "cut", model=model, watch=interrupt_after(2, KeyboardInterrupt()))
    again = run_experiment(tiny(), tmp_path / "cut", resume=True, model=model)
    assert again.records == whole.records
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    kept = load_file(tmp_path / "whole" / "model.safetensors")
    assert torch.equal(kept["encode.weight"], kept["again.weight"])
    loaded = Tied()
    loaded.load_state_dict(kept)
    digits = load("digits")
    assert evaluate(loaded, digits.test_inputs, digits.test_labels)[0] == whole.accuracy


@pytest.mark.parametrize(
    ("rounds", "changes"),
    [
        (1, {}),
        (4, {"method__rule": "memory"}),
        (5, {"method__rule": "inverse-probability", "client__cohort": 2}),
        (6, {}),
        (6, {"rounds": 7}),
    ],
)
def test_a_run_continues_as_if_nothing_had_happened(tmp_path: Path, rounds: int, changes: dict[str, object]) -> None:
    experiment = tiny(**changes)
    whole = run_experiment(experiment, tmp_path / "whole")
    interrupted(tmp_path / "cut", rounds, experiment)
    told: list[RoundRecord] = []
    again = run_experiment(experiment, tmp_path / "cut", resume=True, watch=told.append)
    assert again.records == whole.records == tuple(told)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    before = content(tmp_path)
    assert run_experiment(run.experiment, tmp_path, resume=True) == run
    assert content(tmp_path) == before


def test_resuming_where_nothing_was_begun_begins(tmp_path: Path) -> None:
    run = run_experiment(tiny(), tmp_path / "new", resume=True)
    assert len(run.records) == 6
    (tmp_path / "made" / "checkpoint").mkdir(parents=True)
    assert run_experiment(tiny(), tmp_path / "made", resume=True).records == run.records
    assert run_experiment(tiny(), tmp_path / "made", resume=True).folder == tmp_path / "made"


def test_an_interrupt_saves_what_was_played(tmp_path: Path) -> None:
    interrupted(tmp_path, 3)
    assert files(tmp_path) == [
        ".lock",
        "checkpoint/state.safetensors",
        "experiment.toml",
        "records.jsonl",
        "timeline.json",
    ]
    assert checkpoint.load_checkpoint(tmp_path / "checkpoint" / "state.safetensors")[0].round == 3
    assert len(read_records(tmp_path)) == 3


def test_an_error_of_the_watcher_saves_what_was_played(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_experiment(tiny(), tmp_path, watch=interrupt_after(2, ZeroDivisionError()))
    assert checkpoint.load_checkpoint(tmp_path / "checkpoint" / "state.safetensors")[0].round == 2


def test_checkpoints_are_as_frequent_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(runs, "save_checkpoint", lambda path, state, _: saved.append(state.round))
    run_experiment(tiny(), tmp_path / "rarely", checkpoint_seconds=1000)
    assert saved == [6]
    saved.clear()
    monkeypatch.setattr(runs, "_CHECKPOINT_SHARE", 1e9)
    run_experiment(tiny(), tmp_path / "always", checkpoint_seconds=0)
    assert saved == [1, 2, 3, 4, 5, 6]


def test_saving_slowly_means_saving_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, saved = [0.0], list[int]()

    def pass_a_second(_: RoundRecord) -> None:
        now[0] += 1

    def save_for_two_seconds(path: Path, state: ServerState, _: object) -> None:
        now[0] += 2
        saved.append(state.round)

    monkeypatch.setattr("salf.runs.folder.time.monotonic", lambda: now[0])
    monkeypatch.setattr(runs, "save_checkpoint", save_for_two_seconds)
    run_experiment(tiny(rounds=30), tmp_path, watch=pass_a_second, checkpoint_seconds=0.5)
    # Round 2 is saved from second 1 to 3; a tenth of the time means: not again before second 23, after round 22.
    assert saved == [2, 22, 30]


def test_a_torn_last_line_does_not_count(tmp_path: Path) -> None:
    whole = tiny_run(tmp_path / "whole")
    interrupted(tmp_path / "cut", 3)
    with (tmp_path / "cut" / "records.jsonl").open("a") as file:
        file.write('{"round": 4, "time_s": 4')
    assert run_experiment(tiny(), tmp_path / "cut", resume=True).records == whole.records
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_what_a_killed_process_left_half_written_is_overwritten(tmp_path: Path) -> None:
    tiny_run(tmp_path / "whole")
    interrupted(tmp_path / "cut", 3)
    for name in (*PARTS[2:], "checkpoint/state.safetensors"):
        part = tmp_path / "cut" / name
        part.with_name(f".{part.name}.partial").write_bytes(b"half")
    run_experiment(tiny(), tmp_path / "cut", resume=True)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    tiny_run(tmp_path)
    before = content(tmp_path)
    with pytest.raises(
        RunFolderError, match=r"already holds a run; resume it \(salf run --resume .*\), or choose another"
    ):
        tiny_run(tmp_path)
    (tmp_path / "experiment.toml").rename(tmp_path / "old.toml")
    with pytest.raises(RunFolderError, match="already holds a run"):
        tiny_run(tmp_path)
    (tmp_path / "old.toml").rename(tmp_path / "experiment.toml")
    assert content(tmp_path) == before


def test_a_run_of_another_experiment_is_not_gone_on_with(tmp_path: Path) -> None:
    interrupted(tmp_path, 2)
    message = refused_resumption(tmp_path, tiny(rounds=9, method__deadline=2.0, model__hidden=[9]))
    assert f"{tmp_path} holds a run of another experiment, in which method.deadline is not set, not 2.0" in message
    assert "model.hidden is [8], not [9]; rounds is 6, not 9; resume it with its own settings" in message


def test_what_changes_no_result_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    whole = tiny_run(tmp_path / "whole")
    interrupted(tmp_path / "cut", 3)
    changed = tiny(evaluate__target=0.5, expected={"salf": {"accuracy": 0.1, "tolerance": 0.1}})
    assert run_experiment(changed, tmp_path / "cut", resume=True).records == whole.records


@contextmanager
def space_for(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(signal.getsignal(signal.SIGXFSZ) is not signal.SIG_IGN, reason="Python would be killed")
@pytest.mark.parametrize("room", [100, 1500, 9000])
def test_a_full_disk_is_one_error_and_the_run_goes_on_when_there_is_room(tmp_path: Path, room: int) -> None:
    whole = tiny_run(tmp_path / "whole")
    with space_for(room), pytest.raises(RunFolderError, match=r"cannot write .*: File too large; free space or check"):
        run_experiment(tiny(), tmp_path / "cut", checkpoint_seconds=0)
    assert not any("partial" in name for name in files(tmp_path))
    assert run_experiment(tiny(), tmp_path / "cut", resume=True).records == whole.records
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_writing_leaves_the_old_content_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    atomic.write_atomically(file, b"old")

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_atomically(file, b"new")
    assert files(tmp_path) == ["file"]
    assert file.read_bytes() == b"old"


def test_the_folder_of_the_data_is_stored_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    dataset = load("digits")
    for number, (root, absolute) in enumerate([("data", tmp_path / "data"), ("~/data", tmp_path / "home" / "data")]):
        experiment = tiny(data__name="mnist", data__root=root)
        run = run_experiment(experiment, tmp_path / f"run-{number}", dataset=dataset)
        kept = read_experiment(tmp_path / f"run-{number}")
        assert kept.data.root == absolute
        assert replace(kept, data=replace(kept.data, root=experiment.data.root)) == run.experiment
        assert (
            run_experiment(experiment, tmp_path / f"run-{number}", resume=True, dataset=dataset).records == run.records
        )
