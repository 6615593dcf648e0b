"""Choosing a deadline before the first round.

A plan forecasts what deadlines do to a model on a mix of devices: depth, empty layers, work kept, round time, and the
error that a given time leads to.
"""

from salf.planning.fleet import Fleet as Fleet, Timing as Timing
from salf.planning.measured import MeasuredTimes as MeasuredTimes, read_times as read_times
from salf.planning.outlook import (
    ASSUMED as ASSUMED,
    STEPS as STEPS,
    DeadlinePlan as DeadlinePlan,
    Outlook as Outlook,
    Task as Task,
    make_plan as make_plan,
    outlook_at as outlook_at,
)
