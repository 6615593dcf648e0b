"""Choosing a deadline before the first round.

A plan forecasts what deadlines do to a model on a mix of devices: depth, empty layers, work kept, round time, and the
error that a given time leads to.
"""

from salf.planning.fleet import Fleet as Fleet
from salf.planning.fleet import Timing as Timing
from salf.planning.measured import MeasuredTimes as MeasuredTimes
from salf.planning.measured import read_times as read_times
from salf.planning.outlook import ASSUMED as ASSUMED
from salf.planning.outlook import STEPS as STEPS
from salf.planning.outlook import DeadlinePlan as DeadlinePlan
from salf.planning.outlook import Outlook as Outlook
from salf.planning.outlook import Task as Task
from salf.planning.outlook import make_plan as make_plan
from salf.planning.outlook import outlook_at as outlook_at
