"""What the runs of a group achieved, in numbers, and the table of results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from salf.records import RoundRecord, deviation_of, final_accuracy, mean_work_kept, time_to_accuracy
from salf.report.reported import RunGroup


@dataclass(frozen=True)
class Figures:
    """Means over the runs of a group, as far as these have got.

    Attributes:
        method: The group's label.
        seeds: The seeds of its runs.
        rounds: How many rounds every run has at least.
        planned: How many rounds the experiment has.
        accuracy: The last test accuracy, 0 to 1; NaN if no round was tested.
        deviation: The standard deviation of the accuracy over seeds; NaN for one seed.
        loss: The last test loss; NaN if no round was tested.
        time_s: The virtual time at the end, in seconds.
        work_kept: The share of the clients' finished work that entered the model, 0 to 1.
        bytes_down: What the server sent in a run.
        bytes_up: What the server received in a run.
        rejected: How many updates the server refused in all runs together.
    """

    method: str
    seeds: tuple[int, ...]
    rounds: int
    planned: int
    accuracy: float
    deviation: float
    loss: float
    time_s: float
    work_kept: float
    bytes_down: float
    bytes_up: float
    rejected: int


def figures_of(group: RunGroup) -> Figures:
    """Return what the runs of a group achieved."""
    accuracies = [final_accuracy(run.records) for run in group.runs]
    records = group.records
    return Figures(
        method=group.label,
        seeds=group.seeds,
        rounds=min(len(run.records) for run in group.runs),
        planned=group.runs[0].planned,
        accuracy=fmean(accuracies),
        deviation=deviation_of(accuracies),
        loss=fmean(_final_loss(run.records) for run in group.runs),
        time_s=fmean(run.records[-1].time_s for run in group.runs),
        work_kept=mean_work_kept(records),
        bytes_down=sum(record.bytes_down for record in records) / len(group.runs),
        bytes_up=sum(record.bytes_up for record in records) / len(group.runs),
        rejected=sum(record.rejected for record in records),
    )


def _final_loss(records: tuple[RoundRecord, ...]) -> float:
    return next((record.loss for record in reversed(records) if record.loss is not None), math.nan)


@dataclass(frozen=True)
class Outcome:
    """What a group achieved, measured against a target accuracy.

    Attributes:
        figures: The group's figures.
        times: The virtual time, in seconds, at which each run first reached the target; infinite if it never did.
    """

    figures: Figures
    times: tuple[float, ...]

    @classmethod
    def of(cls, group: RunGroup, target: float) -> "Outcome":
        """Measure a group against a target from 0 to 1; nothing reaches a target of NaN."""
        return cls(figures_of(group), tuple(time_to_accuracy(run.records, target) for run in group.runs))

    @property
    def label(self) -> str:
        """The group's label."""
        return self.figures.method

    @property
    def seconds(self) -> float:
        """The mean time to the target; infinite if any run never reached it."""
        return fmean(self.times)

    @property
    def reached(self) -> int:
        """How many runs reached the target."""
        return sum(map(math.isfinite, self.times))


def results_table(outcomes: Sequence[Outcome], target: float) -> dict[str, list[str]]:
    """Return the columns of the table of results; columns that would say nothing are left out.

    Args:
        outcomes: The outcome of each group.
        target: The accuracy to which runs are timed, 0 to 1; NaN if there is none.
    """
    columns = {
        "method": [one.label for one in outcomes],
        "test accuracy": [_accuracy(one) for one in outcomes],
        "test loss": [_number(one.figures.loss, "") for one in outcomes],
        f"time to {100 * target:.4g} %": [_time_to_target(one) for one in outcomes] if math.isfinite(target) else [],
        "virtual time": [f"{one.figures.time_s:.6g} s" for one in outcomes],
        "work kept": [_percent(one.figures.work_kept) for one in outcomes],
        "sent": [_number(one.figures.bytes_down / 1e6, " MB") for one in outcomes],
        "received": [_number(one.figures.bytes_up / 1e6, " MB") for one in outcomes],
        "refused": [str(one.figures.rejected) for one in outcomes] if any(o.figures.rejected for o in outcomes) else [],
        "rounds": [_rounds(one) for one in outcomes],
        "seeds": [", ".join(map(str, one.figures.seeds)) for one in outcomes],
    }
    return {name: cells for name, cells in columns.items() if cells}


def _accuracy(one: Outcome) -> str:
    deviation = one.figures.deviation
    return _percent(one.figures.accuracy) + (f" ± {100 * deviation:.2f}" if math.isfinite(deviation) else "")


def _time_to_target(one: Outcome) -> str:
    """Return the mean time, or how many runs got there."""
    if math.isfinite(one.seconds):
        return f"{one.seconds:.4g} s"
    return f"{one.reached} of {len(one.times)} runs" if one.reached else "not reached"


def _rounds(one: Outcome) -> str:
    done, planned = one.figures.rounds, one.figures.planned
    return str(done) if done >= planned else f"{done} of {planned}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if math.isfinite(share) else "–"


def _number(value: float, unit: str) -> str:
    return f"{value:.4g}{unit}" if math.isfinite(value) else "–"
