"""Choosing a deadline before the first round: what each would do to a model on a mix of devices."""

from salf.planning.fleet import Fleet as Fleet
from salf.planning.fleet import Timing as Timing
from salf.planning.measured import MeasuredTimes as MeasuredTimes
from salf.planning.measured import read_times as read_times
from salf.planning.outlook import ASSUMED as ASSUMED
from salf.planning.outlook import STEPS as STEPS
from salf.planning.outlook import DeadlinePlan as DeadlinePlan
from salf.planning.outlook import Outlook as Outlook
from salf.planning.outlook import Task as Task
from salf.planning.outlook import look as look
from salf.planning.outlook import make_plan as make_plan
