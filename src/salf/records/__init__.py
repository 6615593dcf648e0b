"""The records of runs: one value per round, curves over several runs, and the timeline of a round. No torch."""

from salf.records.curves import Curve as Curve
from salf.records.curves import curve_of as curve_of
from salf.records.curves import deviation_of as deviation_of
from salf.records.rounds import RoundRecord as RoundRecord
from salf.records.rounds import accuracy_at as accuracy_at
from salf.records.rounds import final_accuracy as final_accuracy
from salf.records.rounds import mean_work_kept as mean_work_kept
from salf.records.rounds import target_accuracy as target_accuracy
from salf.records.rounds import time_to_accuracy as time_to_accuracy
from salf.records.timeline import Activity as Activity
from salf.records.timeline import ClientLine as ClientLine
from salf.records.timeline import Span as Span
from salf.records.timeline import TimeLine as TimeLine
