"""What the commands print, for people and for machines, on terminals of every kind."""

import io
import json
import math
import re
from pathlib import Path
from statistics import fmean

import pytest
from command_cases import only_json, plain, refusal, salf, settings, tiny, tiny_run, write_models
from rich.console import Console

from salf.cli import console
from salf.cli.options import parse_settings
from salf.experiment import preset_names
from salf.records.rounds import RoundRecord
from salf.runs.comparison import compare
from salf.runs.run_files import read_experiment, read_records


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return write_models(tmp_path)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["run", "compare", "layers", "--version"]),
        (["run"], ["--set", "--method", "--out", "--resume", "--json", "fedavg", *preset_names()]),
        (["compare"], ["--methods", "--seeds", "--set", "--out", "--resume", "--jobs", "--json", *preset_names()]),
        (["layers"], ["--example-shape", "--integers", "--group", "--json", "MODULE:CALLABLE", "FILE.py:CALLABLE"]),
    ],
)
@pytest.mark.parametrize("columns", [40, 100])
def test_help_names_every_option(command: list[str], words: list[str], columns: int) -> None:
    result = salf(*command, "--help", columns=columns)
    assert (result.code, result.err) == (0, "")
    text = plain(result.out)
    if columns == 100:
        assert all(word in text for word in words)
        assert "For example: salf" in text or not command
    else:
        assert "Usage:" in text


def test_the_version_is_printed() -> None:
    result = salf("--version")
    assert (result.code, result.err) == (0, "")
    assert re.fullmatch(r"salf \d+\.\d+\.\d+\n", result.out)


def test_a_run_is_told_in_three_lines(tmp_path: Path) -> None:
    run = tiny_run()
    result = salf("run", *settings(), "--out", tmp_path / "run")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        f"digits · salf · seed 0: test accuracy {100 * run.accuracy:.1f} % after 6 rounds, 6 s of virtual time",
        "work kept: 100.0 % of what the clients finished",
        f"kept in {tmp_path / 'run'}",
    ]
    assert salf("run", *settings(rounds=1)).out.startswith("digits · salf · seed 0: test accuracy")
    assert "after 1 round, 1 s" in salf("run", *settings(rounds=1)).out


def test_a_run_prints_one_object_for_machines(tmp_path: Path) -> None:
    run = tiny_run(seed=3, method__name="drop")
    found = only_json(salf("run", *settings(seed=3), "--method", "drop", "--json", "--out", tmp_path))
    last = run.records[-1]
    assert found == {
        "experiment": "digits",
        "method": "drop",
        "engine": "fused",
        "seed": 3,
        "rounds": 6,
        "time_s": last.time_s,
        "accuracy": last.accuracy,
        "loss": last.loss,
        "work_kept": fmean(record.work_kept or 0 for record in run.records),
        "starving": [],
        "folder": str(tmp_path),
    }
    assert only_json(salf("run", "--resume", tmp_path, "--json")) == found


def test_the_method_and_its_settings_come_together(tmp_path: Path) -> None:
    options = settings(method__rule="memory", method__rule__min_contributors=2)
    assert salf("run", "digits", *options, "--method", "salf", "--out", tmp_path / "run").code == 0
    kept = read_experiment(tmp_path / "run").method
    assert kept == tiny(method__rule={"name": "memory", "min_contributors": 2}).method
    assert only_json(salf("run", *settings(method__name="drop"), "--method", "drop", "--json"))["method"] == "drop"
    assert refusal("run", *settings(method__name="drop"), "--method", "salf") == (
        "--method is salf, but --set says drop; give only one"
    )
    assert "did you mean 'salf'?" in refusal("run", "--method", "slaf")


def test_an_experiment_file_is_run(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(tiny(name="mine").to_toml())
    assert only_json(salf("run", path, "--json"))["experiment"] == "mine"


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("name=a b", "a b"),
        ("name= = ", "="),
        ('name="7"', "7"),
        ("name=[bold]", "[bold]"),
        ("seed=0x10", 16),
        (" seed = 1_000 ", 1000),
        ("client.lr=1e-3", 0.001),
        ("model.hidden=[]", []),
        ("method.rule={name='memory'}", {"name": "memory"}),
        ("data.root=C:\\data", "C:\\data"),
        ("name=", ""),
        (f"seed={'9' * 5000}", "9" * 5000),
    ],
)
def test_values_are_read_as_toml_or_else_as_text(pair: str, value: object) -> None:
    assert list(parse_settings([pair]).values()) == [value]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "rounds"], "--set is 'rounds'; give KEY=VALUE, such as data.clients=100"),
        (["--set", "=3"], "--set is '=3'; give KEY=VALUE, such as data.clients=100"),
        (["--set", "name=\udcff"], "surrogates not allowed"),
        (["--set", "method=foo"], "method is 'foo', not a section; set method.name to one of fedavg, drop, "),
        (["--set", "method.name=foo"], "method.name is 'foo'; choose one of fedavg, drop, "),
        (["--set", "method.rule=corected"], "method.rule is 'corected'; choose one of corrected, contributors,"),
        (
            ["--set", "client.lr=nan", "--set", "seed=-1"],
            "seed is -1; choose a number of at least 0; client.lr is nan; choose a finite number",
        ),
        (["[/bold]"], "there is no preset '[/bold]'; choose one of cifar10-vgg11, "),
        (["--set", "[red]=1"], "unknown key '[red]'"),
        (
            ["--out", "x", "--resume", "y"],
            "--out and --resume are both given; give --out for a new run, --resume for an old one",
        ),
        (["--resume", "/nowhere"], "/nowhere holds no run (there is no /nowhere/experiment.toml)"),
        (["--set", "model.name=factory", "--set", "model.call=torch.nn:Identity"], "it has no parameters"),
        (["--set", "model.name=factory", "--set", "model.call=math:pi"], "'pi' is a float; name a function or class"),
        (["--set", "data.name=tensors"], "data.name is 'tensors': give the data in Python"),
        (
            ["--set", "data.name=mnist", "--set", "data.root=/nowhere"],
            "not found in /nowhere/mnist or /nowhere; set data",
        ),
    ],
)
def test_bad_options_of_run_are_one_line(options: list[str], message: str) -> None:
    assert message in refusal("run", *options)


def test_options_that_do_not_exist_are_refused_with_a_hint() -> None:
    for arguments in (
        ["run", "--seeds", "[/x]"],
        ["[/bold]"],
        ["compare", "--jobs", "0"],
        ["layers"],
        ["run", "a", "b"],
    ):
        result = salf(*arguments)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("Usage: ")


def test_a_damaged_folder_is_one_line(tmp_path: Path) -> None:
    tiny_run(tmp_path)
    checkpoint = tmp_path / "checkpoint" / "state.safetensors"
    good = checkpoint.read_bytes()
    checkpoint.write_bytes(good[:100])
    assert f"{checkpoint} is damaged" in refusal("run", "--resume", tmp_path)
    checkpoint.write_bytes(good)
    (tmp_path / "records.jsonl").write_text("[]\n")
    assert "records.jsonl is damaged (this is not the record of a round)" in refusal("run", "--resume", tmp_path)
    assert "in which rounds is 6, not 7" in refusal("run", "--resume", tmp_path, "--set", "rounds=7")
    assert "in which method.name is 'salf', not 'drop'" in refusal("run", "--resume", tmp_path, "--method", "drop")
    assert "already holds a run" in refusal("run", *settings(), "--out", tmp_path)


def test_an_error_of_the_system_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error", "/data/train")

    monkeypatch.setattr("salf.simulation.federation.data.load", fail)
    assert refusal("run") == "/data/train: Input/output error"


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("salf.simulation.federation.data.load", interrupt)
    result = salf("run")
    assert (result.code, result.out) == (130, "")
    assert result.err == "salf: interrupted, and nothing was kept; run the same command again\n"


def test_markup_in_names_is_printed_as_it_is(tmp_path: Path, models: Path) -> None:
    name = "[bold]x[/bold] [/] \\[red]"
    result = salf("run", *settings(name=json.dumps(name)), "--out", tmp_path / "[/]out")
    assert result.code == 0
    assert result.out.startswith(f"{name} · salf · seed 0: test accuracy")
    assert f"kept in {tmp_path}/[/]out" in result.out
    compared = ["--methods", "salf", "--seeds", "1", "--jobs", "1", "--out", tmp_path / "[b]"]
    result = salf("compare", *settings(name=json.dumps(name)), *compared)
    assert result.code == 0
    assert f"{name}: 6 rounds, 4 clients, 1 seed" in result.out
    assert f"plot: {tmp_path}/[b]/accuracy.png and .svg · everything: {tmp_path}/[b]" in result.out
    result = salf("layers", f"{models}:bracketed")
    assert all(layer in result.out for layer in ("[red]in[/red]", "[/]"))
    assert "no weights [/bold] here" in refusal("layers", f"{models}:broken")


@pytest.mark.parametrize("columns", [20, 300])
def test_terminals_of_any_width(columns: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: Path) -> None:
    screens = {name: io.StringIO() for name in ("_people", "_errors")}
    for name, screen in screens.items():
        terminal = Console(file=screen, force_terminal=True, width=columns, legacy_windows=False)
        monkeypatch.setattr(console, name, terminal)
    options = ["--seeds", "1", "--jobs", "1", "--methods", "fedavg,salf", "--out", tmp_path / "all"]
    assert salf("run", *settings(name="[/b] $ _")).code == 0
    assert salf("compare", *settings(), *options).code == 0
    assert salf("layers", f"{models}:plain", "--example-shape", "64").code == 0
    assert salf("run", "nothing").code == 2
    shown = plain(screens["_people"].getvalue())
    if columns == 300:
        assert "[/b] $ _ · salf · seed 0: test accuracy" in shown
        assert "Sequential: 2 layers, input to output, forward pass" in shown
        progress = plain(screens["_errors"].getvalue())
        assert "[/b] $ _ · salf" in progress
        assert "100%" in progress
        assert "accuracy" in progress


def test_progress_is_for_people_only(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "_errors", Console(file=screen, force_terminal=True, width=80))
    assert salf("run", *settings(), "--json").code == 0
    assert screen.getvalue() == ""


def test_a_comparison_is_told_as_a_table_and_kept_as_json(tmp_path: Path) -> None:
    comparison = compare(tiny(seed=2), ["drop", "fedavg"], 2)
    arguments = ["--methods", " drop,,fedavg ", "--seeds", "2", "--jobs", "1"]
    result = salf("compare", *settings(seed=2), *arguments, "--out", tmp_path)
    assert (result.code, result.err) == (0, "")
    assert "digits: 6 rounds, 4 clients, 2 seeds" in result.out
    assert "time to 95.0 %: mean virtual time until the test accuracy first reaches the target" in plain(result.out)
    found = only_json(salf("compare", *settings(seed=2), *arguments, "--out", tmp_path, "--resume", "--json"))
    assert json.loads((tmp_path / "comparison.json").read_text()) == found
    assert {key: found[key] for key in ("experiment", "seeds", "target")} == {
        "experiment": "digits",
        "seeds": [2, 3],
        "target": 0.95,
    }
    for row, summary in zip(found["methods"], comparison.summaries, strict=True):
        assert summary.method in result.out
        assert f"{100 * summary.accuracy:.1f} ±{100 * summary.deviation:.1f}" in result.out
        assert row == {
            "method": summary.method,
            "lr": 0.2,
            "accuracies": list(summary.accuracies),
            "accuracy": summary.accuracy,
            "deviation": summary.deviation,
            "equal_time_accuracies": list(summary.equal_time_accuracies),
            "equal_time_accuracy": summary.equal_time_accuracy,
            "time_s": summary.time_s,
            "time_to_target_s": None,
            "speed_up": None,
            "work_kept": summary.work_kept,
            "bytes_down": summary.bytes_down,
            "bytes_up": summary.bytes_up,
            "rival": summary.rival,
            "p_value": summary.p_value,
            "starving": [],
        }
        records = [read_records(tmp_path / summary.method / f"seed-{seed}") for seed in (2, 3)]
        assert [run.records for run in comparison.runs[summary.method]] == [tuple(some) for some in records]
        assert [_last_accuracy(some) for some in records] == row["accuracies"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"accuracy.png", "accuracy.svg", "comparison.json", "drop", "fedavg", "report.html"}


def _last_accuracy(records: list[RoundRecord]) -> float:
    return records[-1].accuracy or math.nan


def test_speed_is_told_against_waiting_for_everyone(tmp_path: Path) -> None:
    reached = settings(evaluate__target=0.05, evaluate__every=1)
    options = ["--methods", "salf,fedavg", "--seeds", "1", "--jobs", "1", "--out", tmp_path, "--json"]
    salf_row, fedavg_row = only_json(salf("compare", *reached, *options))["methods"]
    assert fedavg_row["speed_up"] == 1.0
    assert salf_row["speed_up"] == fedavg_row["time_to_target_s"] / salf_row["time_to_target_s"] > 1
    assert salf_row["deviation"] is None
    again = plain(salf("compare", *reached, *options[:-1], "--resume").out)
    assert f"{salf_row['speed_up']:.1f}×" in again


def test_a_comparison_is_kept_in_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--methods", "salf", "--seeds", "1", "--jobs", "1"]
    for name, folder in (("digits", "digits-comparison"), ("/tmp/../a b$", "-tmp-..-a-b--comparison")):
        result = salf("compare", *settings(name=json.dumps(name)), *options)
        assert (result.code, result.err) == (0, "")
        assert (tmp_path / "runs" / folder / "comparison.json").exists()
    assert "already holds a run; resume it" in refusal("compare", *settings(), *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "seeds is 0; choose at least 1"),
        (["--seeds", "-1"], "seeds is -1; choose at least 1"),
        (["--methods", ","], "methods are none; name each method to compare once"),
        (["--methods", "salf,salf"], "methods are salf, salf; name each method to compare once"),
        (["--methods", "salf,dorp"], "there is no method 'dorp'; choose one of fedavg"),
        (["nothing"], "there is no preset 'nothing'"),
        (["--set", "data.name=mnist", "--set", "data.root=/nowhere", "--jobs", "1"], "not found in /nowhere"),
        (["--out", "file/below", "--jobs", "1"], "cannot make the folder file/below/fedavg/seed-0: Not a directory"),
    ],
)
def test_bad_options_of_compare_are_one_line(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert message in refusal("compare", *options)
