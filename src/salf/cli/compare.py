"""`salf compare`: one experiment with several methods, over several seeds."""

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from salf.cli.console import (
    counted,
    given_arguments,
    json_file,
    megabytes,
    percent,
    print_json,
    progress_bar,
    resumed_by,
    seconds,
    show,
    table_of,
    tell,
)
from salf.cli.options import AsJson, Named, Settings, names_in, option, parse_settings, path_option, positive_numbers
from salf.experiment import Experiment
from salf.methods import METHODS
from salf.report import plot_accuracy, save_figure
from salf.runs import Comparison, RunFiles, Summary, Tuning, compare, tune as try_rates, write_atomically, write_page

MethodNames = Annotated[
    str, option("NAME,…", f"The methods to compare, separated by commas, or all: {', '.join(METHODS)}.")
]
SeedCount = Annotated[int, option("N", "How many seeds, counted up from the experiment's own.")]
ComparisonFolder = Annotated[
    Path | None,
    path_option("DIR", "Keep runs, table, plots and report in this new folder; by default runs/EXPERIMENT-comparison."),
]
ResumesFolder = Annotated[bool, typer.Option("--resume", help="Continue with what the folder already holds.")]
JobCount = Annotated[int | None, option("N", "How many processes share the runs; by default one per core.", least=1)]
TunedRates = Annotated[
    str | None,
    option("LR,…", "First try these learning rates with each method, on held-out examples; then compare its best."),
]


def compare_command(
    experiment: Named = "digits",
    methods: MethodNames = "fedavg,salf,drop",
    seeds: SeedCount = 5,
    settings: Settings = None,
    out: ComparisonFolder = None,
    resume: ResumesFolder = False,
    jobs: JobCount = None,
    tune: TunedRates = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods on equal terms: same data, seeds and devices.

    It shows accuracy over virtual time. The experiment is a preset or a TOML file; if none is named, it is digits.

    For example: salf compare digits --methods fedavg,salf --seeds 3
    """
    chosen = Experiment.load(experiment, **parse_settings(settings))
    names = [*METHODS] if methods == "all" else names_in(methods)
    rates = positive_numbers("--tune", tune or "", "0.03,0.1,0.3")
    folder = out or Path("runs") / re.sub(r"[^\w.-]+", "-", f"{chosen.name}-comparison")
    jobs = min(jobs or os.cpu_count() or 1, max(1, len(names) * max(seeds, len(rates))))
    again = [*given_arguments(), *([] if out else ["--out", str(folder)]), *([] if resume else ["--resume"])]
    before, best, tuning = chosen.rounds * len(names) * len(rates), None, None
    with resumed_by(again, folder):
        with progress_bar(chosen.name, before + chosen.rounds * len(names) * seeds, shown=not as_json) as bar:
            if rates:
                free_seed = chosen.seed + seeds  # the first that is not compared
                tuning = try_rates(chosen, names, rates, free_seed, folder, resume=resume, jobs=jobs, watch=bar.show)
                best = tuning.learning_rates
            comparison = compare(
                chosen,
                names,
                seeds,
                folder,
                resume=resume,
                jobs=jobs,
                watch=lambda played: bar.show(before + played),
                learning_rates=best,
            )
        result = comparison_json(comparison, tuning)
        _keep(comparison, json_file(result), folder)
    if as_json:
        print_json(result)
        return
    show(comparison_table(comparison))
    for line in footnotes(comparison):
        tell(line)
    if tuning is not None:
        tell(f"learning rate of each method, the best of {tune} on held-out examples: {_best_rates(tuning)}")
    tell(f"report: {folder / 'report.html'} · plot: {folder / 'accuracy.png'} and .svg · everything: {folder}")


def _keep(comparison: Comparison, result: bytes, folder: Path) -> None:
    """Write the table, the plots and the report beside the runs.

    The plots stay as they are if the table does, and no run has changed since they were drawn.

    Args:
        comparison: What to draw.
        result: The content of `comparison.json`.
        folder: Where the comparison is kept.

    Raises:
        RunFolderError: A file cannot be written.
    """
    kept = [run.folder for runs in comparison.runs.values() for run in runs if run.folder is not None]
    table, plots = folder / "comparison.json", [folder / f"accuracy{suffix}" for suffix in (".png", ".svg")]
    newest = max(RunFiles(run).records.stat().st_mtime_ns for run in kept)
    if not _is_drawn(table, result, plots, newest):
        curves = {method: [run.records for run in runs] for method, runs in comparison.runs.items()}
        seeds = counted(len(next(iter(comparison.runs.values()))), "seed")
        figure = plot_accuracy(curves, f"{comparison.experiment.name}: {seeds}", comparison.target)
        for plot in plots:
            save_figure(figure, plot)
        write_atomically(table, result)
    write_page(kept, folder / "report.html")


def _is_drawn(table: Path, result: bytes, plots: Sequence[Path], newest: int) -> bool:
    """Return whether the plots show this table, and the runs as they are.

    Args:
        table: The file of the table, which is written after the plots.
        result: What it should hold.
        plots: The files of the plots.
        newest: When the last of the runs' records was written.
    """
    if not all(file.exists() for file in (table, *plots)) or table.read_bytes() != result:
        return False
    drawn = [plot.stat().st_mtime_ns for plot in plots]
    return newest < min(drawn) and max(drawn) <= table.stat().st_mtime_ns


def _best_rates(tuning: Tuning) -> str:
    """Name each method's learning rate, and say where a rate beyond the tried ones may be better.

    Returns:
        Such as "salf 0.3 (the largest tried), drop 0.1".
    """
    edges = {method: f" (the {edge} tried)" for method, edge in tuning.edges.items()}
    return ", ".join(f"{method} {rate:g}{edges.get(method, '')}" for method, rate in tuning.learning_rates.items())


def comparison_table(comparison: Comparison) -> Table:
    """Return a table with one row per method; it fits 80 columns.

    Accuracies are means over seeds with their standard deviation; footnotes explain the columns.
    """
    experiment, count = comparison.experiment, len(next(iter(comparison.runs.values())))
    extent = (counted(experiment.rounds, "round"), counted(experiment.data.clients, "client"), counted(count, "seed"))
    columns: dict[str, Callable[[Summary], str]] = {
        "method": lambda one: one.method,
        "final\naccuracy %": lambda one: _accuracy(one.accuracy, one.deviation),
        f"accuracy %\nat {seconds(comparison.equal_time_s)}": lambda one: _accuracy(
            one.equal_time_accuracy, one.equal_time_deviation
        ),
        f"time to\n{percent(comparison.target)}": _time_to_target,
        "\nspeed-up": lambda one: "–" if (ratio := comparison.speed_up(one)) is None else f"{ratio:.1f}×",
        "work\nkept": lambda one: "–" if math.isnan(one.work_kept) else f"{100 * one.work_kept:.0f} %",
        "MB down\n/ up": lambda one: f"{megabytes(one.bytes_down)}/{megabytes(one.bytes_up)}",
        "\np": lambda one: "–" if one.p_value is None else _p_value(one.p_value),
    }
    return table_of(f"{experiment.name}: {', '.join(extent)}", columns, comparison.summaries)


def footnotes(comparison: Comparison) -> Iterator[str]:
    """Yield a line for each column that needs one, and for each method with starving layers.

    The t-test is explained only if there was one, and the speed-up only if some method has one.
    """
    equal, target = seconds(comparison.equal_time_s), percent(comparison.target)
    chosen = "" if comparison.experiment.evaluate.target else " (95 % of the best method's; set evaluate.target)"
    summaries = comparison.summaries
    tested = [summary for summary in summaries if math.isfinite(summary.equal_time_accuracy)]
    untested = [summary.method for summary in summaries if summary not in tested]
    yield "accuracy: on the test data, mean ± standard deviation over seeds"
    yield f"at {equal}: at the virtual time at which the shortest run ended" + (
        f"; not tested by then: {', '.join(untested)}" if untested else ""
    )
    yield f"time to {target}: mean virtual time until the test accuracy first reaches the target{chosen}"
    if any(comparison.speed_up(summary) is not None for summary in summaries):
        yield f"speed-up: time to {target} of fedavg, which waits for every client, divided by the method's"
    yield "work kept: share of the clients' finished work that entered the model"
    yield "MB down / up: megabytes that the server sent and received in a run"
    if any(summary.p_value is not None for summary in summaries):
        best = max(tested, key=lambda summary: summary.equal_time_accuracy).method
        yield f"p: p-value of a paired t-test against the best other method at {equal}; best of all: {best}"
    for summary in summaries:
        if summary.starving:
            layers = ", ".join(summary.starving)
            yield f"{summary.method}: some clients never send {layers}; `salf run` with this method names them"


def _accuracy(mean: float, deviation: float) -> str:
    """Write an accuracy in per cent, without the sign.

    >>> _accuracy(0.915, 0.012)
    '91.5 ±1.2'
    """
    return percent(mean, deviation).replace(" %", "").replace("± ", "±")


def _time_to_target(summary: Summary) -> str:
    """Write the mean time; if only some seeds reach the target, how many.

    Returns:
        Such as "167 s", "by 2 of 3" or, if no seed reaches the target, "never".
    """
    reached = sum(map(math.isfinite, summary.times_to_target))
    if 0 < reached < len(summary.times_to_target):
        return f"by {reached} of {len(summary.times_to_target)}"
    return seconds(summary.time_to_target)


def _p_value(value: float) -> str:
    """Write a p-value with three digits.

    >>> _p_value(0.04), _p_value(0.001), _p_value(0.00099)
    ('0.040', '0.001', '<.001')
    """
    return f"{value:.3f}" if value >= 0.001 else "<.001"


def comparison_json(comparison: Comparison, tuning: Tuning | None) -> dict[str, object]:
    """Return the comparison under the keys of `comparison.json`, which docs/records.md describes.

    Args:
        comparison: The runs and their summaries.
        tuning: The learning rates that were tried; None if none were.
    """
    return {
        "experiment": comparison.experiment.name,
        "seeds": [run.experiment.seed for run in next(iter(comparison.runs.values()))],
        "target": comparison.target,
        "equal_time_s": comparison.equal_time_s,
        "methods": [_summary_json(comparison, summary) for summary in comparison.summaries],
        "tuning": tuning
        and [
            {"method": method, "lr": rate, "held_out_accuracy": accuracy}
            for method, tried in tuning.accuracies.items()
            for rate, accuracy in tried.items()
        ],
    }


def _summary_json(comparison: Comparison, summary: Summary) -> dict[str, object]:
    """Return a method's row; docs/records.md describes the keys.

    Args:
        comparison: Where the method's learning rate and the time of its rival come from.
        summary: The method's results; times of single seeds are left out.
    """
    known = asdict(summary)
    del known["times_to_target"]
    return {
        **known,
        "lr": comparison.runs[summary.method][0].experiment.client.lr,
        "accuracy": summary.accuracy,
        "deviation": summary.deviation,
        "equal_time_accuracy": summary.equal_time_accuracy,
        "time_to_target_s": summary.time_to_target,
        "speed_up": comparison.speed_up(summary),
    }
