"""Participation of clients in a run: reached layers, speeds, and starving layers.

Observations are immutable values: `observe` returns the next one. Methods and rules read them in place of a known
device model.
"""

from salf.participation.observed import (
    Chances as Chances,
    ObservedReach as ObservedReach,
    ObservedSpeeds as ObservedSpeeds,
)
from salf.participation.starvation import (
    StarvationMonitor as StarvationMonitor,
    StarvationWarning as StarvationWarning,
    Starving as Starving,
    describe_starvation as describe_starvation,
    left_behind as left_behind,
    starving as starving,
)
