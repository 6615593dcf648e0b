"""Several methods over several seeds: the same numbers however the runs are shared out, stopped and resumed."""

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from command_cases import content, tiny, tiny_run

from salf.errors import DataUnavailable, InvalidSetting, RunFolderError, SalfError
from salf.experiment.experiment import Experiment
from salf.records.rounds import RoundRecord, time_to_accuracy
from salf.runs.comparison import Comparison, Summary, compare
from salf.runs.run import Run, read_finished_run, run_experiment

METHODS = ["fedavg", "salf"]


def records(comparison: Comparison) -> dict[str, list[tuple[RoundRecord, ...]]]:
    return {method: [run.records for run in runs] for method, runs in comparison.runs.items()}


def test_two_processes_give_the_same_as_one(tmp_path: Path) -> None:
    told: dict[int, list[int]] = {1: [], 2: []}
    found = {
        jobs: compare(tiny(seed=5), METHODS, 2, tmp_path / str(jobs), jobs=jobs, watch=told[jobs].append)
        for jobs in told
    }
    assert records(found[1]) == records(found[2])
    assert found[1].summaries == found[2].summaries
    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert sorted(path.name for path in (tmp_path / "2" / "salf").iterdir()) == ["seed-5", "seed-6"]
    assert told[1] == [*range(1, 25)]
    assert told[2] == sorted(told[2])
    assert told[2][-1] == 24
    # Every run is the run that would have been played alone.
    alone = run_experiment(replace(tiny(seed=6), method=tiny().with_method("fedavg").method))
    assert found[2].runs["fedavg"][1].records == alone.records
    # Nothing is left of the other processes.
    assert multiprocessing.active_children() == []


def test_runs_compute_on_one_thread_whatever_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    before, during = torch.get_num_threads(), set[int]()
    torch.set_num_threads(2)
    # Larger models would be shared among threads by themselves.
    monkeypatch.setattr("salf.simulation.federation._WORTH_THREADS", 0)
    try:
        compare(tiny(rounds=1), METHODS, 1, watch=lambda _: during.add(torch.get_num_threads()))
        assert during == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    comparison = compare(tiny(rounds=2), METHODS, 1)
    assert [run.folder for runs in comparison.runs.values() for run in runs] == [None, None]
    assert not any(tmp_path.iterdir())


def stop_after(rounds: int) -> Callable[[int], None]:
    def watch(done: int) -> None:
        if done == rounds:
            raise KeyboardInterrupt

    return watch


def test_a_comparison_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole = compare(tiny(), METHODS, 2, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        compare(tiny(), METHODS, 2, tmp_path / "cut", watch=stop_after(9))
    with pytest.raises(RunFolderError, match=r"fedavg/seed-0 already holds a run; resume it"):
        compare(tiny(), METHODS, 2, tmp_path / "cut")
    again = compare(tiny(), METHODS, 2, tmp_path / "cut", resume=True)
    assert records(again) == records(whole)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    # More seeds and another method: what is there is kept.
    more = compare(tiny(), ["drop", *METHODS], 3, tmp_path / "cut", resume=True)
    assert more.runs["salf"][:2] == again.runs["salf"]
    assert list(more.runs) == ["drop", "fedavg", "salf"]


def test_folders_are_looked_at_before_anything_is_run(tmp_path: Path) -> None:
    run_experiment(tiny(), tmp_path / "salf" / "seed-1")
    with pytest.raises(RunFolderError, match="salf/seed-1 already holds a run"):
        compare(tiny(), METHODS, 2, tmp_path)
    with pytest.raises(RunFolderError, match="holds a run of another experiment, in which rounds is 6, not 7"):
        compare(tiny(rounds=7), METHODS, 2, tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["salf"]


@pytest.mark.parametrize(
    ("methods", "seeds", "message"),
    [
        (METHODS, 0, "seeds is 0; choose at least 1"),
        (METHODS, -2, "seeds is -2; choose at least 1"),
        ([], 1, "methods are none; name each method to compare once"),
        (["salf", "drop", "salf"], 1, "methods are salf, drop, salf; name each method to compare once"),
        (["salf", "dorp"], 1, r"there is no method 'dorp'; choose one of fedavg, .*, salf.* \(did you mean 'drop'\?\)"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods: list[str], seeds: int, message: str) -> None:
    with pytest.raises(InvalidSetting, match=f"^{message}$"):
        compare(tiny(), methods, seeds)


@pytest.mark.slow
def test_an_error_of_one_run_stops_the_others(tmp_path: Path) -> None:
    (tmp_path / "salf").write_text("in the way")
    began = time.monotonic()
    with pytest.raises(RunFolderError, match=r"cannot make the folder .*/salf/seed-0: Not a directory; choose another"):
        compare(tiny(rounds=10**6), METHODS, 1, tmp_path, jobs=2)
    assert time.monotonic() - began < 300  # a million rounds would take an hour
    assert multiprocessing.active_children() == []
    # The other run, if it had begun, has saved what it had.
    folder = tmp_path / "fedavg" / "seed-0"
    if (folder / "records.jsonl").exists():
        assert (folder / "checkpoint" / "state.safetensors").exists()
    with pytest.raises(DataUnavailable):
        compare(tiny(data__name="mnist", data__root=str(tmp_path)), METHODS, 1, tmp_path / "other")


@pytest.mark.slow
def test_a_process_that_dies_is_one_error(tmp_path: Path) -> None:
    def kill_one(done: int) -> None:
        for child in multiprocessing.active_children()[: done > 0]:
            os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(
        SalfError, match=r"a process of the comparison died .*; resume the runs that were kept \(--resume\)"
    ):
        compare(tiny(rounds=10**6), METHODS, 1, tmp_path, jobs=2, watch=kill_one)
    assert multiprocessing.active_children() == []


def test_finished_runs_are_read_not_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(tiny(), METHODS, 2, tmp_path)
    before = content(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("salf.runs.pool.run_experiment", None)
        again = compare(tiny(), METHODS, 2, tmp_path, resume=True, jobs=2)
    assert again == whole
    assert content(tmp_path) == before
    # With a run that is not finished all are resumed, which checks that they were made on the same data.
    played: list[Path | None] = []

    def note(experiment: Experiment, folder: Path | None, *arguments: object, **named: object) -> Run:
        played.append(folder)
        return run_experiment(experiment, folder, resume=True)

    monkeypatch.setattr("salf.runs.pool.run_experiment", note)
    (tmp_path / "salf" / "seed-1" / "model.safetensors").unlink()
    assert compare(tiny(), METHODS, 2, tmp_path, resume=True) == whole
    assert len(played) == 4
    assert content(tmp_path) == before


def test_a_page_older_than_the_model_does_not_count_as_finished(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    assert read_finished_run(tmp_path, tiny()) == run
    os.utime(tmp_path / "report.html", ns=(0, 0))
    assert read_finished_run(tmp_path, tiny()) is None
    assert read_finished_run(tmp_path / "none", tiny()) is None


def made_up(experiment: Experiment, accuracies: list[float | None], kept: float | None = 0.5) -> Run:
    return Run(
        experiment,
        tuple(
            RoundRecord(number, 2.0 * number, None, 3, (3,), kept, accuracy=accuracy)
            for number, accuracy in enumerate(accuracies, start=1)
        ),
    )


def test_a_summary_says_what_the_records_say() -> None:
    comparison = compare(tiny(), METHODS, 3)
    for summary in comparison.summaries:
        runs = comparison.runs[summary.method]
        accuracies = [run.records[-1].accuracy or 0 for run in runs]
        assert summary.accuracies == tuple(accuracies)
        assert summary.accuracy == fmean(accuracies)
        assert summary.deviation == pytest.approx(stdev(accuracies))
        assert summary.time_s == fmean(run.records[-1].time_s for run in runs)
        assert summary.times_to_target == tuple(time_to_accuracy(run.records, comparison.target) for run in runs)
        assert summary.work_kept == pytest.approx(fmean(r.work_kept or 0 for run in runs for r in run.records))
    best = max(summary.accuracy for summary in comparison.summaries)
    assert comparison.target == 0.95 == tiny().evaluate.target
    free = replace(tiny(), evaluate=replace(tiny().evaluate, target=None))
    assert compare(free, METHODS, 3).target == 0.95 * best


def test_a_summary_without_numbers_says_so() -> None:
    experiment = tiny()
    runs: dict[str, tuple[Run, ...]] = {
        "salf": (made_up(experiment, [None, 0.5], kept=None),),
        "drop": (made_up(experiment, [0.1, 0.9]),),
    }
    salf, drop = Comparison(experiment, 0.6, runs).summaries
    assert math.isnan(salf.deviation)
    assert math.isnan(salf.work_kept)
    assert math.isinf(salf.time_to_target)
    assert drop == Summary("drop", (0.9,), (0.9,), 4.0, (4.0,), 0.5, 0.0, 0.0, rival="salf")
    assert (salf.rival, salf.p_value) == ("drop", None)


def test_methods_are_compared_at_equal_virtual_time_with_their_best_rival() -> None:
    experiment = tiny()
    quick = tuple(made_up(experiment, [0.2, accuracy]) for accuracy in (0.5, 0.6, 0.4))
    slow = tuple(made_up(experiment, [0.1, accuracy, 0.9]) for accuracy in (0.3, 0.5, 0.1))
    bad = tuple(made_up(experiment, [0.1, 0.1]) for _ in range(3))
    comparison = Comparison(experiment, 0.6, {"salf": quick, "fedavg": slow, "drop": bad})
    assert comparison.equal_time_s == quick[0].time_s < slow[0].time_s
    salf, fedavg, drop = comparison.summaries
    assert salf.equal_time_accuracies == (0.5, 0.6, 0.4)
    assert fedavg.equal_time_accuracies == (0.3, 0.5, 0.1)
    assert fedavg.accuracies == (0.9, 0.9, 0.9)
    assert (salf.rival, fedavg.rival, drop.rival) == ("fedavg", "salf", "salf")
    # Differences 0.2, 0.1, 0.3: mean 0.2, standard error 0.1/√3, two degrees of freedom.
    t = 0.2 / (0.1 / math.sqrt(3))
    assert salf.p_value == fedavg.p_value == pytest.approx(1 - t / math.sqrt(t * t + 2))


def test_who_was_not_tested_by_then_has_no_accuracy_at_equal_time() -> None:
    experiment = tiny()
    quick = tuple(made_up(experiment, [0.2, accuracy]) for accuracy in (0.5, 0.6))
    slow = tuple(made_up(experiment, [None, None, accuracy]) for accuracy in (0.7, 0.9))
    salf, fedavg = Comparison(experiment, 0.6, {"salf": quick, "fedavg": slow}).summaries
    assert salf.equal_time_deviation == pytest.approx(0.1 / math.sqrt(2))
    assert math.isnan(fedavg.equal_time_accuracy)
    assert math.isnan(fedavg.equal_time_deviation)
    assert (salf.rival, fedavg.rival) == (None, "salf")


def test_differences_without_spread_say_nothing() -> None:
    experiment = tiny()
    runs = {
        name: tuple(made_up(experiment, [0.1, accuracy]) for _ in range(2))
        for name, accuracy in (("salf", 0.5), ("fedavg", 0.5), ("drop", 0.25))
    }
    salf, _, drop = Comparison(experiment, 0.6, runs).summaries
    assert (salf.p_value, drop.p_value) == (1.0, None)
