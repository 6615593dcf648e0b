"""`salf compare`: one experiment by several methods, over several seeds."""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from salf.cli.console import (
    AsJson,
    Named,
    Settings,
    counted,
    finite,
    given_path,
    megabytes,
    parse_settings,
    percent,
    print_json,
    progress_bar,
    seconds,
    show,
    tell,
)
from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.methods import METHODS
from salf.runs import Comparison, Summary, Tuning, write_atomically, write_page
from salf.runs import compare as compare_methods
from salf.runs import tune as tune_methods

Methods = Annotated[
    str,
    typer.Option(
        metavar="NAME,…", help=f"The mechanisms to compare, separated by commas, or all: {', '.join(METHODS)}."
    ),
]
Seeds = Annotated[int, typer.Option(metavar="N", help="How many seeds, counted up from the experiment's own.")]
Out = Annotated[
    Path | None,
    typer.Option(
        parser=given_path,
        metavar="DIR",
        help="Keep runs, table, plots and report in this new folder; by default runs/EXPERIMENT-comparison.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what the folder already holds.")]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="How many processes share the runs; by default one per core."),
]
Tune = Annotated[
    str | None,
    typer.Option(
        metavar="LR,…",
        help="First try these learning rates with each method, on held-out training examples; compare its best.",
    ),
]


def compare(
    experiment: Named = "digits",
    methods: Methods = "fedavg,salf,drop",
    seeds: Seeds = 5,
    settings: Settings = None,
    out: Out = None,
    resume: Resume = False,
    jobs: Jobs = None,
    tune: Tune = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods on equal terms: same data, seeds and devices, accuracy against virtual time.

    The experiment is a preset or a TOML file; with nothing named it is digits.

    For example: salf compare digits --methods fedavg,salf --seeds 3
    """
    chosen = Experiment.load(experiment, **parse_settings(settings))
    names = [*METHODS] if methods == "all" else [name.strip() for name in methods.split(",") if name.strip()]
    rates = _rates(tune)
    folder = Path("runs") / re.sub(r"[^\w.-]+", "-", f"{chosen.name}-comparison") if out is None else out
    workers = min(jobs or os.cpu_count() or 1, max(1, len(names) * max(seeds, len(rates))))
    with progress_bar(chosen.name, chosen.rounds * len(names) * (seeds + len(rates)), shown=not as_json) as bar:
        tuning, done = None, 0
        if rates:
            seed = chosen.seed + seeds  # the first that is not compared
            tuning = tune_methods(chosen, names, rates, seed, folder, resume=resume, jobs=workers, watch=bar.show)
            done = chosen.rounds * len(names) * len(rates)
        comparison = compare_methods(
            chosen,
            names,
            seeds,
            folder,
            resume=resume,
            jobs=workers,
            watch=lambda played: bar.show(done + played),
            learning_rates=None if tuning is None else tuning.learning_rates,
        )
    result = _as_object(comparison, tuning)
    write_atomically(folder / "comparison.json", (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    curves = {method: [run.records for run in runs] for method, runs in comparison.runs.items()}
    from salf.report import plot_accuracy, save_figure  # noqa: PLC0415 - takes half a second to import

    figure = plot_accuracy(curves, f"{chosen.name}: {counted(seeds, 'seed')}", comparison.target)
    for suffix in (".png", ".svg"):
        save_figure(figure, folder / f"accuracy{suffix}")
    kept = [run.folder for runs in comparison.runs.values() for run in runs if run.folder is not None]
    write_page(kept, folder / "report.html")
    if as_json:
        print_json(result)
    else:
        show(_table(comparison))
        tell(_legend(comparison))
        for line in _hungry(comparison):
            tell(line)
        if tuning is not None:
            tell(f"learning rates, each the best of {tune} on held-out examples: {_best_rates(tuning)}")
        tell(f"report: {folder / 'report.html'} · plot: {folder / 'accuracy.png'} and .svg · everything: {folder}")


def _rates(text: str | None) -> list[float]:
    """Read the learning rates to try."""
    try:
        return [float(rate) for rate in (text or "").split(",") if rate.strip()]
    except ValueError as error:
        raise InvalidSetting(f"--tune is '{text}'; give numbers separated by commas, such as 0.03,0.1,0.3") from error


def _best_rates(tuning: Tuning) -> str:
    """Name each method's learning rate, and say where one beyond those that were tried may be better."""
    edges = {method: f" (the {edge} tried)" for method, edge in tuning.edges.items()}
    return ", ".join(f"{method} {rate:g}{edges.get(method, '')}" for method, rate in tuning.learning_rates.items())


def _table(comparison: Comparison) -> Table:
    experiment, count = comparison.experiment, len(next(iter(comparison.runs.values())))
    extent = (counted(experiment.rounds, "round"), counted(experiment.data.clients, "client"), counted(count, "seed"))
    table = Table(
        title=Text(f"{experiment.name}: {', '.join(extent)}"),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("method", style="bold", no_wrap=True)
    headings = ("accuracy %", f"at {seconds(comparison.equal_time_s)}", f"to {percent(comparison.target)}")
    for heading in (*headings, "speed-up", "kept", "down/up", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in comparison.summaries:
        speed_up = comparison.speed_up(summary)
        table.add_row(
            summary.method,
            _accuracy(summary.accuracy, summary.deviation),
            _accuracy(summary.equal_time_accuracy, summary.equal_time_deviation),
            _time_to_target(summary),
            "–" if speed_up is None else f"{speed_up:.1f}×",
            "–" if math.isnan(summary.work_kept) else f"{100 * summary.work_kept:.0f} %",
            f"{megabytes(summary.bytes_down)}/{megabytes(summary.bytes_up)}",
            "–" if summary.p_value is None else _chance(summary.p_value),
        )
    return table


def _chance(p_value: float) -> str:
    """Write a p-value, a very small one as no more than that: the table has to fit 80 columns."""
    return f"{p_value:.3f}" if p_value >= 0.001 else "<.001"


def _accuracy(mean: float, deviation: float) -> str:
    """Write an accuracy in per cent, without the sign."""
    return percent(mean, deviation).replace(" %", "").replace("± ", "±")


def _legend(comparison: Comparison) -> str:
    """Say what the columns are, and who has no accuracy at equal time."""
    tested = [summary for summary in comparison.summaries if math.isfinite(summary.equal_time_accuracy)]
    late = [summary.method for summary in comparison.summaries if summary not in tested]
    chosen = "" if comparison.experiment.evaluate.target else ", 95 % of the best method (set evaluate.target)"
    legend = (
        "accuracy on the test data, mean ± standard deviation over seeds: at the end of the run, and at equal virtual "
        f"time; to {percent(comparison.target)}: mean virtual time to that target{chosen}; speed-up: against fedavg; "
        "kept: share of the clients' finished work that entered the model; down/up: MB sent and received by the server"
    )
    if len(tested) > 1:
        best = max(tested, key=lambda summary: summary.equal_time_accuracy).method
        legend += f"; p: paired t-test against the best other method at equal virtual time (best of all: {best})"
    return f"{legend}; not tested by then: {', '.join(late)}" if late else legend


def _hungry(comparison: Comparison) -> Iterator[str]:
    """Yield a line for each method by which layers starved."""
    for summary in comparison.summaries:
        if summary.starving:
            layers = ", ".join(summary.starving)
            yield f"{summary.method}: {layers} learn from some of the clients alone; salf run says from whom not"


def _time_to_target(summary: Summary) -> str:
    """Write the mean time; where only some seeds reach the target, how many."""
    reached = sum(map(math.isfinite, summary.times_to_target))
    if 0 < reached < len(summary.times_to_target):
        return f"by {reached} of {len(summary.times_to_target)}"
    return seconds(summary.time_to_target)


def _as_object(comparison: Comparison, tuning: Tuning | None) -> dict[str, object]:
    return {
        "experiment": comparison.experiment.name,
        "seeds": [run.experiment.seed for run in next(iter(comparison.runs.values()))],
        "target": comparison.target,
        "equal_time_s": comparison.equal_time_s,
        "methods": [_summary_as_object(comparison, summary) for summary in comparison.summaries],
        "tuning": None if tuning is None else _tuning_as_object(tuning),
    }


def _summary_as_object(comparison: Comparison, summary: Summary) -> dict[str, object]:
    return {
        "method": summary.method,
        "lr": comparison.runs[summary.method][0].experiment.client.lr,
        "accuracies": list(summary.accuracies),
        "accuracy": summary.accuracy,
        "deviation": finite(summary.deviation),
        "equal_time_accuracies": [finite(accuracy) for accuracy in summary.equal_time_accuracies],
        "equal_time_accuracy": finite(summary.equal_time_accuracy),
        "time_s": summary.time_s,
        "time_to_target_s": finite(summary.time_to_target),
        "speed_up": comparison.speed_up(summary),
        "work_kept": finite(summary.work_kept),
        "bytes_down": summary.bytes_down,
        "bytes_up": summary.bytes_up,
        "starving": list(summary.starving),
        "rival": summary.rival,
        "p_value": summary.p_value,
    }


def _tuning_as_object(tuning: Tuning) -> list[dict[str, object]]:
    return [
        {"method": method, "lr": rate, "held_out_accuracy": accuracy}
        for method, tried in tuning.accuracies.items()
        for rate, accuracy in tried.items()
    ]
