"""`salf run`: one experiment by one method."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from salf.cli.console import (
    AsJson,
    Bar,
    Named,
    Settings,
    counted,
    finite,
    given_path,
    parse_settings,
    percent,
    print_json,
    progress_bar,
    seconds,
    tell,
)
from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.methods import METHODS
from salf.records import RoundRecord, mean_work_kept
from salf.runs import Run, RunFolder, run_experiment, tracking


def run(
    experiment: Named = "",
    settings: Settings = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"The mechanism, in place of the experiment's own: {', '.join(METHODS)}."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What computes the clients' training: auto, plain, fused, stacked, flower."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=given_path, metavar="DIR", help="Keep settings, records, model and report in this new folder."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            parser=given_path,
            metavar="DIR",
            help="Go on with the interrupted run in this folder.",
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            parser=given_path,
            metavar="DIR",
            help="Log to TensorBoard in this new folder (extra: tracking).",
        ),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="URI|DIR", help="Log to an MLflow server, or to a database in a folder (extra: tracking)."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run one experiment by one method, on a virtual clock.

    The experiment is a preset or a TOML file; with nothing named it is digits, or that of the folder to resume.

    For example: salf run digits --set rounds=50 --method fedavg --out runs/waiting
    """
    if out is not None and resume is not None:
        raise InvalidSetting("give either --out, for a new run, or --resume, for one that was interrupted")
    overrides = parse_settings(settings)
    for option, key, value in (("--method", "method.name", method), ("--engine", "engine", engine)):
        if value is not None and overrides.setdefault(key, value) != value:
            raise InvalidSetting(f"{option} is {value}, but --set says {overrides[key]}; give only one")
    chosen = _choose(experiment, overrides, resume)
    with ExitStack() as open_while_running:
        title = f"{chosen.name} · {chosen.method.name}"
        bar = open_while_running.enter_context(progress_bar(title, chosen.rounds, shown=not as_json))
        watches = [_shown_on(bar)]
        if tensorboard is not None:
            log = tracking.tensorboard(tensorboard, chosen, resume=resume is not None)
            watches.append(open_while_running.enter_context(log))
        if mlflow is not None:
            log = tracking.mlflow(mlflow, chosen, resume or out, resume=resume is not None)
            watches.append(open_while_running.enter_context(log))

        def watch(record: RoundRecord) -> None:
            for tell_one in watches:
                tell_one(record)

        finished = _play(chosen, resume or out, resume is not None, watch)
    if as_json:
        print_json(_as_object(finished))
    else:
        _report(finished)


def _shown_on(bar: Bar) -> Callable[[RoundRecord], None]:
    """Return a watch that moves the progress bar."""

    def watch(record: RoundRecord) -> None:
        note = "" if record.accuracy is None else f"accuracy {percent(record.accuracy)} at {seconds(record.time_s)}"
        bar.show(record.round, note)

    return watch


def _play(experiment: Experiment, folder: Path | None, resume: bool, watch: Callable[[RoundRecord], None]) -> Run:
    if experiment.engine != "flower":
        return run_experiment(experiment, folder, resume, watch=watch)
    try:
        from salf.flower import run_on_flower  # noqa: PLC0415 - an extra, which takes seconds to import
    except ModuleNotFoundError as error:
        raise InvalidSetting(f"--engine flower: {error}") from error
    return run_on_flower(experiment, folder, resume, watch=watch)


def _choose(named: str, overrides: dict[str, object], resume: Path | None) -> Experiment:
    """Load what was named; with only a folder to resume, what its run was."""
    if resume is None:
        return Experiment.load(named or "digits", **overrides)
    known = RunFolder.read_experiment(resume)
    if not named and not overrides:
        return known
    return Experiment.load(named or resume / "experiment.toml", **overrides)


def _as_object(run: Run) -> dict[str, object]:
    last = run.records[-1]
    return {
        "experiment": run.experiment.name,
        "method": run.experiment.method.name,
        "engine": last.engine,
        "seed": run.experiment.seed,
        "rounds": last.round,
        "time_s": last.time_s,
        "accuracy": finite(run.accuracy),
        "loss": last.loss,
        "work_kept": finite(mean_work_kept(run.records)),
        "starving": [asdict(one) for one in run.starving],
        "folder": None if run.folder is None else str(run.folder),
    }


def _report(run: Run) -> None:
    experiment, last = run.experiment, run.records[-1]
    name = f"{experiment.name} · {experiment.method.name} · seed {experiment.seed}"
    tell(
        Text.assemble(
            (name, "bold"),
            ": test accuracy ",
            (percent(run.accuracy), "bold"),
            f" after {counted(last.round, 'round')}, {seconds(last.time_s)} of virtual time",
        )
    )
    kept = mean_work_kept(run.records)
    if not math.isnan(kept):
        tell(f"work kept: {percent(kept)} of what the clients finished")
    refused = sum(record.rejected for record in run.records)
    if refused:
        tell(f"refused: {counted(refused, 'update')} with values that were not finite; a lower client.lr may help")
    expected = experiment.expected.get(experiment.method.name)
    if expected is not None and experiment.is_as_published():
        tell(f"expected, with {experiment.name} as published: {percent(expected.accuracy, expected.tolerance)}")
    if run.folder is not None:
        tell(f"kept in {run.folder}")
