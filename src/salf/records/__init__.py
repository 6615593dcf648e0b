"""The records of runs: one value per round, curves over several runs, and the timeline of a round. No torch."""

from salf.records.curves import Curve as Curve, curve_of as curve_of, deviation_of as deviation_of
from salf.records.rounds import (
    RoundRecord as RoundRecord,
    accuracy_at as accuracy_at,
    final_accuracy as final_accuracy,
    mean_work_kept as mean_work_kept,
    target_accuracy as target_accuracy,
    time_to_accuracy as time_to_accuracy,
)
from salf.records.timeline import Activity as Activity, ClientLine as ClientLine, Span as Span, TimeLine as TimeLine
