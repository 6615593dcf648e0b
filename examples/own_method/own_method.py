"""An own method, rule and device model for salf, on one page.

Install the folder (`pip install ./examples/own_method`), and salf knows the three by name:

    salf compare digits --methods salf,mine --set devices.kind=two-speeds
    salf run digits --method mine --set method.patience=0.3 --set method.rule.temper=1
"""

from collections.abc import Sequence
from dataclasses import field
from typing import Literal

import numpy as np

from salf.aggregation import AnyRule, LayerShare, Rule
from salf.devices import Cohort, CompletionTimes, Devices, Workload
from salf.methods import RoundSchedule, SynchronousMethod, until_deadline
from salf.values import Fraction, Positive, validated


@validated
class Tempered(Rule):
    """A compromise between dividing by the weight of the contributors (`temper` = 0) and of the cohort (1)."""

    name: Literal["tempered"] = "tempered"
    temper: Fraction = 0.5

    def factor(self, share: LayerShare) -> float:
        """Return the number by which the weighted sum of the contributors' updates is multiplied."""
        return float(share.weight ** (self.temper - 1) * share.weight_all**-self.temper)


@validated
class Mine(SynchronousMethod):
    """End a round when the share `patience` of the clients has sent everything; keep the layers of the others."""

    name: Literal["mine"] = "mine"
    patience: Fraction = 0.1
    rule: AnyRule = field(default_factory=Tempered)

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Count every layer that is sent before the round ends."""
        (times,) = options
        order = np.sort(times.whole)
        last = order[max(int(self.patience * len(order)), 1) - 1]
        return until_deadline(times, float(last) if np.isfinite(last) else usual_seconds)

    @property
    def aggregation_rule(self) -> Rule:
        """The chosen rule."""
        return self.rule


@validated
class TwoSpeeds(Devices):
    """Every client keeps one of two speeds: the share `slow` needs `slow_seconds`, the others `fast_seconds`."""

    kind: Literal["two-speeds"] = "two-speeds"
    slow: Fraction = 0.5
    fast_seconds: Positive = 1.0
    slow_seconds: Positive = 3.0

    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Return when each client completes each layer of each step; sending takes no time."""
        is_slow = cohort.uniforms("two-speeds", 1, lasting=True)[:, 0] < self.slow
        seconds = np.where(is_slow, self.slow_seconds, self.fast_seconds)
        done = workload.shares[::-1].cumsum()[::-1]  # the last layer is complete first
        done = np.arange(workload.local_steps)[:, None] * done[0] + done
        done = done / (workload.local_steps * workload.costs.num_layers)
        ready = cohort.computing(seconds[:, None, None] * done)
        return CompletionTimes(ready, ready, ready[:, -1, 0])

    def typical_seconds(self, workload: Workload) -> float:
        """Return the time of a fast client."""
        return self.fast_seconds
