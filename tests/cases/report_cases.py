"""Runs for reports, made by hand."""

from pathlib import Path

from salf.experiment.experiment import Experiment
from salf.records.rounds import RoundRecord
from salf.records.timeline import ClientLine, Span, TimeLine
from salf.report import ReportedRun
from salf.runs.run import run_experiment

LAYERS = ("in", "hidden", "out")


def record(number: int, seed: int = 0, **changes: object) -> RoundRecord:
    """A round of 4 clients: 1, 2 and 3 send the three layers; every second round is evaluated."""
    tested = number % 2 == 0
    values: dict[str, object] = {
        "round": number,
        "time_s": 2.0 * number,
        "deadline_s": 2.0,
        "clients": 4,
        "contributors": (1, 2, 3),
        "work_kept": 0.5,
        "depths": (1, 1, 1, 1),
        "bytes_down": 4_000_000,
        "bytes_up": 1_000_000,
        "accuracy": 0.4 + 0.1 * seed + number / 1000 if tested else None,
        "loss": 2.0 - number / 1000 if tested else None,
    }
    return RoundRecord(**{**values, **changes})  # type: ignore[arg-type]


TIMELINE = TimeLine(
    layers=LAYERS,
    round=3,
    clients=4,
    deadline_s=2.0,
    end_s=2.0,
    lines=(
        ClientLine(
            2,
            1,
            (
                Span("receive", 0.0, 0.2, counted=True),
                Span("forward", 0.2, 0.7, counted=True),
                Span("backward", 0.7, 1.2, counted=True, layer=2),
                Span("backward", 1.2, 2.0, counted=False, cut=True, layer=1),
                Span("send", 1.2, 1.5, counted=True),
            ),
        ),
        ClientLine(0, 0, (Span("forward", 0.0, 2.0, counted=False, cut=True),)),
    ),
)


def reported(method: str = "salf", seed: int = 0, rounds: int = 4, **changes: object) -> ReportedRun:
    """A run of that many rounds without a target; other settings have two underscores for a dot."""
    settings = {"evaluate.target": None, **{key.replace("__", "."): value for key, value in changes.items()}}
    experiment = Experiment.load("digits", rounds=4, seed=seed, **settings).with_method(method)
    return ReportedRun(experiment.to_toml(), tuple(record(number, seed) for number in range(1, rounds + 1)), TIMELINE)


def keep_runs(folder: Path) -> list[Path]:
    """Save two short runs of three methods on unequal phones in folders."""
    made = []
    for method in ("fedavg", "drop", "salf"):
        for seed in (0, 1):
            short = {"data.clients": 6, "client.local_steps": 2, "evaluate.every": 2, "devices.kind": "physical"}
            experiment = Experiment.load("digits", rounds=4, seed=seed, **short).with_method(method)
            made.append(folder / method / f"seed-{seed}")
            run_experiment(experiment, made[-1])
    return made
