"""Participation of clients in a run: reached layers, speeds, and starving layers.

Observations are immutable values: `observe` returns the next one. Methods and rules read them in place of a known
device model.
"""

from salf.participation.observed import Chances as Chances
from salf.participation.observed import ObservedReach as ObservedReach
from salf.participation.observed import ObservedSpeeds as ObservedSpeeds
from salf.participation.starvation import StarvationMonitor as StarvationMonitor
from salf.participation.starvation import StarvationWarning as StarvationWarning
from salf.participation.starvation import Starving as Starving
from salf.participation.starvation import describe_starvation as describe_starvation
from salf.participation.starvation import left_behind as left_behind
from salf.participation.starvation import starving as starving
