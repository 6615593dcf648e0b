"""The table that `salf compare` ends with, its legend, and paths that are mistakes."""

import io
import os
from pathlib import Path

import pytest
from command_cases import refusal, salf, tiny_run
from rich.console import Console

from salf.cli.compare import comparison_table, footnotes
from salf.experiment.experiment import Experiment
from salf.records.rounds import RoundRecord
from salf.runs.comparison import Comparison
from salf.runs.run import Run


def test_the_table_of_a_comparison_fits_a_narrow_terminal() -> None:
    experiment = Experiment.load("digits", rounds=999)
    accuracies = {"overselection": (0.9, 0.91), "fedavg": (0.5, 0.6), "drop": (0.1, 0.101)}
    runs = {
        method: tuple(
            Run(experiment, (RoundRecord(1, 1234.0, None, 30, (30,), 1.0, accuracy=one, bytes_down=10**8),))
            for one in some
        )
        for method, some in accuracies.items()
    }
    page = io.StringIO()
    comparison = Comparison(experiment, 0.95, runs)
    Console(width=80, file=page).print(comparison_table(comparison))
    text = page.getvalue()
    assert "…" not in text
    assert all(part in text for part in ("overselection", "at 1234 s", "100 %", "55.0 ±7.1"))
    (test,) = (note for note in footnotes(comparison) if "t-test" in note)
    assert test.endswith("best of all: overselection")


@pytest.mark.parametrize(
    "command", [("run", "--out="), ("run", "--resume="), ("compare", "--out="), ("report", "--out=")]
)
def test_an_empty_path_is_a_mistake(command: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = salf(command[0], "digits", command[1])
    assert result.code == 2
    assert "it is empty" in " ".join(result.err.split())
    assert not [*tmp_path.iterdir()]


def test_a_folder_with_a_report_of_somebody_elses_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    assert "holds" in refusal("run", "digits", "--set", "rounds=1", "--out", tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    folder = tiny_run(tmp_path / "run").folder
    assert "it is not a regular file" in refusal("report", folder, "--out", pipe)
    assert pipe.is_fifo()


def test_the_legend_names_who_has_no_accuracy_at_equal_time() -> None:
    experiment = Experiment.load("digits", rounds=9)

    def run(end: float, accuracy: float) -> tuple[Run, ...]:
        return (Run(experiment, (RoundRecord(1, end, None, 30, (30,), 1.0, accuracy=accuracy),)),)

    alone = " ".join(footnotes(Comparison(experiment, 0.95, {"salf": run(1.0, 0.5)})))
    assert "t-test" not in alone
    assert "not tested" not in alone
    three = {"salf": run(1.0, 0.5), "drop": run(1.0, 0.4), "fedavg": run(9.0, 0.9)}
    notes = [*footnotes(Comparison(experiment, 0.95, three))]
    assert "at 1 s: at the virtual time at which the shortest run ended; not tested by then: fedavg" in notes
    assert not any("t-test" in note for note in notes)
