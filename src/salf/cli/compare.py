"""`salf compare`: one experiment with several methods, over several seeds."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from salf.cli.compare_table import comparison_json, comparison_table, footnotes
from salf.cli.console import given_arguments, json_file, print_json, progress_bar, resumed_by, show, tell
from salf.cli.options import AsJson, Named, Settings, names_in, option, parse_settings, path_option, positive_numbers
from salf.cli.quantities import counted
from salf.experiment import Experiment
from salf.methods import METHODS
from salf.report import plot_accuracy, save_figure
from salf.runs import Comparison, RunFiles, Tuning, compare, write_atomically, write_page
from salf.runs import tune as try_rates

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
    """Name each method's learning rate, and say where a rate beyond the tried ones may be better."""
    edges = {method: f" (the {edge} tried)" for method, edge in tuning.edges.items()}
    return ", ".join(f"{method} {rate:g}{edges.get(method, '')}" for method, rate in tuning.learning_rates.items())
