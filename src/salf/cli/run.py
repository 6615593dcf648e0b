"""`salf run`: one experiment with one method."""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from rich.text import Text

from salf.cli.console import counted, percent, print_json, progress_bar, resumed_by, seconds, tell
from salf.cli.options import AsJson, Named, Settings, option, parse_settings, path_option
from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.methods import METHODS
from salf.records import RoundRecord, mean_work_kept
from salf.runs import RecordObserver, Run, log_to_mlflow, log_to_tensorboard, read_experiment, run_experiment

NewFolder = Annotated[Path | None, path_option("DIR", "Keep settings, records, model and report in this new folder.")]
ResumedFolder = Annotated[Path | None, path_option("DIR", "Resume the interrupted run in this folder.")]
LogFolder = Annotated[Path | None, path_option("DIR", "Log to TensorBoard in this new folder (extra: tracking).")]
LogAddress = Annotated[
    str | None, option("URI|DIR", "Log to an MLflow server, or to a database in a folder (extra: tracking).")
]
MethodName = Annotated[
    str | None, option("NAME", f"The method, in place of the experiment's own: {', '.join(METHODS)}.")
]
EngineName = Annotated[
    str | None, option("NAME", "What computes the clients' training: auto, plain, fused, stacked, flower.")
]


def run_command(
    experiment: Named = "",
    settings: Settings = None,
    method: MethodName = None,
    engine: EngineName = None,
    out: NewFolder = None,
    resume: ResumedFolder = None,
    tensorboard: LogFolder = None,
    mlflow: LogAddress = None,
    as_json: AsJson = False,
) -> None:
    """Run one experiment with one method, on a virtual clock.

    The experiment is a preset or a TOML file. If none is named, it is digits, or that of the folder to resume.

    For example: salf run digits --set rounds=50 --method fedavg --out runs/waiting
    """
    if out is not None and resume is not None:
        raise InvalidSetting("--out and --resume are both given; give --out for a new run, --resume for an old one")
    overrides, resumes, folder = _overrides(settings, method, engine), resume is not None, resume or out
    chosen = _experiment(experiment, overrides, resume)
    with ExitStack() as opened:
        if folder is not None:
            opened.enter_context(resumed_by(_resuming(folder, tensorboard, mlflow, as_json), folder))
        title = f"{chosen.name} · {chosen.method.name}"
        bar = opened.enter_context(progress_bar(title, chosen.rounds, shown=not as_json))
        logs: list[RecordObserver] = []
        if tensorboard is not None:
            logs.append(opened.enter_context(log_to_tensorboard(tensorboard, chosen, resume=resumes)))
        if mlflow is not None:
            logs.append(opened.enter_context(log_to_mlflow(mlflow, chosen, folder, resume=resumes)))

        def watch(record: RoundRecord) -> None:
            note = "" if record.accuracy is None else f"accuracy {percent(record.accuracy)} at {seconds(record.time_s)}"
            bar.show(record.round, note)
            for log in logs:
                log(record)

        finished = _run_on_engine(chosen, folder, resumes, watch)
    if as_json:
        print_json(_run_json(finished))
    else:
        _tell_result(finished)


def _overrides(settings: list[str] | None, method: str | None, engine: str | None) -> dict[str, object]:
    """Return the settings that the command line overrides.

    Args:
        settings: The values of all `--set` options.
        method: The value of `--method`.
        engine: The value of `--engine`.

    Raises:
        InvalidSetting: An option and `--set` give different values.
    """
    overrides = parse_settings(settings)
    for name, key, value in (("--method", "method.name", method), ("--engine", "engine", engine)):
        if value is not None and overrides.setdefault(key, value) != value:
            raise InvalidSetting(f"{name} is {value}, but --set says {overrides[key]}; give only one")
    return overrides


def _experiment(named: str, overrides: dict[str, object], resume: Path | None) -> Experiment:
    """Load the named experiment; if only a folder to resume is given, the experiment of its run.

    Args:
        named: A preset or a TOML file; empty if none was named.
        overrides: The settings that the command line overrides.
        resume: The folder of the run to resume, if any.

    Raises:
        RunFolderError: The folder to resume holds no run.
    """
    if resume is None:
        return Experiment.load(named or "digits", **overrides)
    known = read_experiment(resume)
    if not named and not overrides:
        return known
    return Experiment.load(named or resume / "experiment.toml", **overrides)


def _resuming(folder: Path, tensorboard: Path | None, mlflow: str | None, as_json: bool) -> list[str]:
    """Return the command line that resumes the run in a folder, which holds all settings."""
    logs = (("--tensorboard", tensorboard), ("--mlflow", mlflow))
    options = [part for option, value in logs if value is not None for part in (option, str(value))]
    return ["run", "--resume", str(folder), *options, *(["--json"] if as_json else [])]


def _run_on_engine(experiment: Experiment, folder: Path | None, resume: bool, watch: RecordObserver) -> Run:
    """Run on Flower's simulation engine if the experiment says so, else on salf's own.

    Args:
        experiment: What to run.
        folder: Where to keep the run; None keeps nothing.
        resume: Whether to continue a run that is already there.
        watch: Is called with every record.

    Raises:
        InvalidSetting: Flower is not installed.
    """
    if experiment.engine != "flower":
        return run_experiment(experiment, folder, resume, watch=watch)
    try:
        from salf.flower import run_on_flower  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise InvalidSetting(f"--engine is flower: {error}") from error
    return run_on_flower(experiment, folder, resume, watch=watch)


def _run_json(run: Run) -> dict[str, object]:
    """Return the run's results as what JSON can hold."""
    last = run.records[-1]
    return {
        "experiment": run.experiment.name,
        "method": run.experiment.method.name,
        "engine": last.engine,
        "seed": run.experiment.seed,
        "rounds": last.round,
        "time_s": last.time_s,
        "accuracy": run.accuracy,
        "loss": last.loss,
        "work_kept": mean_work_kept(run.records),
        # `nobody` is the key that earlier versions print.
        "starving": [
            {"layer": one.layer, "absent": one.absent, "known": one.known, "nobody": one.unreached}
            for one in run.starving
        ],
        "folder": None if run.folder is None else str(run.folder),
    }


def _tell_result(run: Run) -> None:
    """Print the results in a few lines.

    The expected accuracy is named only for an experiment that is run as it is published.
    """
    experiment, last = run.experiment, run.records[-1]
    name = f"{experiment.name} · {experiment.method.name} · seed {experiment.seed}"
    after = f" after {counted(last.round, 'round')}, {seconds(last.time_s)} of virtual time"
    tell(Text.assemble((name, "bold"), ": test accuracy ", (percent(run.accuracy), "bold"), after))
    kept = mean_work_kept(run.records)
    if not math.isnan(kept):
        tell(f"work kept: {percent(kept)} of what the clients finished")
    refused = sum(record.rejected for record in run.records)
    if refused:
        tell(f"refused: {counted(refused, 'update')} with values that are not finite; try a lower client.lr")
    expected = experiment.expected.get(experiment.method.name)
    if expected is not None and experiment.is_as_published():
        tell(f"expected, with {experiment.name} as published: {percent(expected.accuracy, expected.tolerance)}")
    if run.folder is not None:
        tell(f"kept in {run.folder}")
