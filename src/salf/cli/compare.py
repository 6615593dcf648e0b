"""`salf compare`: one experiment with several methods, over several seeds."""

import json
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from salf.cli.compare_table import comparison_json, comparison_table, footnotes
from salf.cli.console import given_arguments, print_json, progress_bar, resumed_by, show, tell
from salf.cli.options import AsJson, Named, Settings, option, parse_settings, path_option, positive_numbers
from salf.cli.quantities import counted, json_value
from salf.experiment import Experiment
from salf.methods import METHODS
from salf.report import plot_accuracy, save_figure
from salf.runs import Comparison, Tuning, compare, tune, write_atomically, write_page

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
    names = [*METHODS] if methods == "all" else [name.strip() for name in methods.split(",") if name.strip()]
    rates = positive_numbers("--tune", tune or "", "0.03,0.1,0.3")
    folder = Path("runs") / re.sub(r"[^\w.-]+", "-", f"{chosen.name}-comparison") if out is None else out
    workers = min(jobs or os.cpu_count() or 1, max(1, len(names) * max(seeds, len(rates))))
    again = [*given_arguments(), *([] if out else ["--out", str(folder)]), *([] if resume else ["--resume"])]
    with resumed_by(again, folder):
        tuning, comparison = _compare(
            chosen, names, seeds, rates, folder, resume=resume, jobs=workers, shows_progress=not as_json
        )
        result = comparison_json(comparison, tuning)
        _keep(comparison, result, folder)
    if as_json:
        print_json(result)
        return
    show(comparison_table(comparison))
    for line in footnotes(comparison):
        tell(line)
    if tuning is not None:
        tell(f"learning rate of each method, the best of {tune} on held-out examples: {_best_rates(tuning)}")
    tell(f"report: {folder / 'report.html'} · plot: {folder / 'accuracy.png'} and .svg · everything: {folder}")


def _compare(
    experiment: Experiment,
    methods: list[str],
    seeds: int,
    rates: list[float],
    folder: Path,
    *,
    resume: bool,
    jobs: int,
    shows_progress: bool,
) -> tuple[Tuning | None, Comparison]:
    """Tune if there are learning rates to try, then compare, under one progress bar."""
    rounds = experiment.rounds * len(methods)
    with progress_bar(experiment.name, rounds * (seeds + len(rates)), shown=shows_progress) as bar:
        tuning, best = None, None
        if rates:
            seed = experiment.seed + seeds  # the first that is not compared
            tuning = tune(experiment, methods, rates, seed, folder, resume=resume, jobs=jobs, watch=bar.show)
            best = tuning.learning_rates
        before = rounds * len(rates)
        comparison = compare(
            experiment,
            methods,
            seeds,
            folder,
            resume=resume,
            jobs=jobs,
            watch=lambda played: bar.show(before + played),
            learning_rates=best,
        )
    return tuning, comparison


def _keep(comparison: Comparison, result: object, folder: Path) -> None:
    """Write the table, the plots and the report beside the runs."""
    write_atomically(
        folder / "comparison.json", (json.dumps(json_value(result), indent=2, allow_nan=False) + "\n").encode()
    )
    curves = {method: [run.records for run in runs] for method, runs in comparison.runs.items()}
    seeds = counted(len(next(iter(comparison.runs.values()))), "seed")
    figure = plot_accuracy(curves, f"{comparison.experiment.name}: {seeds}", comparison.target)
    for suffix in (".png", ".svg"):
        save_figure(figure, folder / f"accuracy{suffix}")
    kept = [run.folder for runs in comparison.runs.values() for run in runs if run.folder is not None]
    write_page(kept, folder / "report.html")


def _best_rates(tuning: Tuning) -> str:
    """Name each method's learning rate, and say where a rate beyond the tried ones may be better."""
    edges = {method: f" (the {edge} tried)" for method, edge in tuning.edges.items()}
    return ", ".join(f"{method} {rate:g}{edges.get(method, '')}" for method, rate in tuning.learning_rates.items())
