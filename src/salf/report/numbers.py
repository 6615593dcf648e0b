"""The table of figures: what the runs of each group come to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from salf.records import RoundRecord, deviation_of, final_accuracy, mean_work_kept
from salf.report.reported import Group


@dataclass(frozen=True)
class Figures:
    """The means over the runs of a group, as far as they have got.

    `accuracy`, from 0 to 1, and `loss` are the last that were tested (NaN: none was), `deviation` the standard
    deviation of the accuracy over seeds (NaN for one). `rounds` is how many rounds every run has at least, `time_s` the
    virtual time at the end, `work_kept` the share of the clients' finished work that entered the model, `bytes_down`
    and `bytes_up` what the server sent and received, `rejected` how many updates it refused in all runs together.
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


def figures_of(group: Group) -> Figures:
    """Return what the runs of a group come to."""
    accuracies = [final_accuracy(run.records) for run in group.runs]
    records = [record for run in group.runs for record in run.records]
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


def _final_loss(records: Sequence[RoundRecord]) -> float:
    return next((record.loss for record in reversed(records) if record.loss is not None), math.nan)
