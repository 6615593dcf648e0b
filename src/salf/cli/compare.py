"""`salf compare`: one experiment by several methods, over several seeds."""

import json
import math
import os
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from salf.checkpoint import write_atomically
from salf.cli.console import (
    AsJson,
    Named,
    Settings,
    counted,
    finite,
    parse_settings,
    percent,
    print_json,
    progress_bar,
    seconds,
    show,
    tell,
)
from salf.comparison import Comparison, Summary
from salf.comparison import compare as compare_methods
from salf.experiment import Experiment
from salf.methods import METHODS
from salf.plots import plot_accuracy, save_figure

Methods = Annotated[
    str, typer.Option(metavar="NAME,…", help=f"The mechanisms to compare, separated by commas: {', '.join(METHODS)}.")
]
Seeds = Annotated[int, typer.Option(metavar="N", help="How many seeds, counted up from the experiment's own.")]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Keep runs, table and plots in this new folder; by default runs/EXPERIMENT-comparison."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what the folder already holds.")]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="How many processes share the runs; by default one per core."),
]


def compare(
    experiment: Named = "digits",
    methods: Methods = "fedavg,salf,drop",
    seeds: Seeds = 5,
    settings: Settings = None,
    out: Out = None,
    resume: Resume = False,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods on equal terms: same data, seeds and devices, accuracy against virtual time.

    The experiment is a preset or a TOML file; with nothing named it is digits.

    For example: salf compare digits --methods fedavg,salf --seeds 3
    """
    chosen = Experiment.load(experiment, **parse_settings(settings))
    names = [name.strip() for name in methods.split(",") if name.strip()]
    folder = Path("runs") / re.sub(r"[^\w.-]+", "-", f"{chosen.name}-comparison") if out is None else out
    workers = min(jobs or os.cpu_count() or 1, max(1, len(names) * seeds))
    with progress_bar(chosen.name, chosen.rounds * len(names) * seeds, shown=not as_json) as bar:
        comparison = compare_methods(chosen, names, seeds, folder, resume=resume, jobs=workers, watch=bar.show)
    result = _as_object(comparison)
    write_atomically(folder / "comparison.json", (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    curves = {method: [run.records for run in runs] for method, runs in comparison.runs.items()}
    figure = plot_accuracy(curves, f"{chosen.name}: {counted(seeds, 'seed')}", comparison.target)
    for suffix in (".png", ".svg"):
        save_figure(figure, folder / f"accuracy{suffix}")
    if as_json:
        print_json(result)
    else:
        show(_table(comparison))
        tell(f"plot: {folder / 'accuracy.png'} and .svg · everything: {folder}")


def _table(comparison: Comparison) -> Table:
    experiment, count = comparison.experiment, len(next(iter(comparison.runs.values())))
    extent = (counted(experiment.rounds, "round"), counted(experiment.data.clients, "client"), counted(count, "seed"))
    chosen = "" if experiment.evaluate.target else ", 95 % of the best method (set evaluate.target)"
    table = Table(
        title=Text(f"{experiment.name}: {', '.join(extent)}"),
        caption=f"accuracy: mean ± standard deviation over seeds; target: {percent(comparison.target)}{chosen}; "
        "time to target: mean over seeds, on the virtual clock; speed-up: against fedavg",
    )
    table.add_column("method", style="bold")
    for heading in ("test accuracy", "time of the run", "time to target", "speed-up", "work kept"):
        table.add_column(heading, justify="right")
    for summary in comparison.summaries:
        speed_up = _speed_up(comparison, summary)
        table.add_row(
            summary.method,
            percent(summary.accuracy, summary.deviation),
            seconds(summary.time_s),
            _time_to_target(summary),
            "–" if speed_up is None else f"{speed_up:.1f}×",
            percent(summary.work_kept),
        )
    return table


def _time_to_target(summary: Summary) -> str:
    """Write the mean time; where only some seeds reach the target, how many."""
    reached = sum(map(math.isfinite, summary.times_to_target))
    if 0 < reached < len(summary.times_to_target):
        return f"by {reached} of {len(summary.times_to_target)}"
    return seconds(summary.time_to_target)


def _speed_up(comparison: Comparison, summary: Summary) -> float | None:
    """Return how much sooner than by waiting for everyone the target is reached."""
    waiting = next((other for other in comparison.summaries if other.method == "fedavg"), None)
    if waiting is None or math.isinf(waiting.time_to_target) or math.isinf(summary.time_to_target):
        return None
    return waiting.time_to_target / summary.time_to_target


def _as_object(comparison: Comparison) -> dict[str, object]:
    return {
        "experiment": comparison.experiment.name,
        "seeds": [run.experiment.seed for run in next(iter(comparison.runs.values()))],
        "target": comparison.target,
        "methods": [
            {
                "method": summary.method,
                "accuracies": list(summary.accuracies),
                "accuracy": summary.accuracy,
                "deviation": finite(summary.deviation),
                "time_s": summary.time_s,
                "time_to_target_s": finite(summary.time_to_target),
                "speed_up": _speed_up(comparison, summary),
                "work_kept": finite(summary.work_kept),
            }
            for summary in comparison.summaries
        ],
    }
