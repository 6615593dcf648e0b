"""What the layer-wise methods share."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field

from salf.aggregation import Rule
from salf.devices import CompletionTimes
from salf.errors import InvalidSetting
from salf.methods.method import RoundContext, SynchronousMethod
from salf.methods.schedules import RoundSchedule, until_deadline
from salf.participation import ObservedReach
from salf.values import Floats, Positive, validated


@validated
class LayerWise(SynchronousMethod):
    """A method in which each client conveys the layers that it has finished at the deadline.

    The chances that its rule uses are estimated from earlier rounds (`reach_from="observed"`), as a real federation
    must, or taken from the experiment's device model (`"known"`) where that has a closed form for them. `deadline` is
    in seconds; without one it is the usual time of the experiment's devices.
    """

    deadline: Positive | None = None
    reach_from: Literal["observed", "known"] = "observed"

    @property
    @abstractmethod
    def own_rule(self) -> Rule:
        """How far a layer moves that not everyone reached."""

    @property
    def aggregation_rule(self) -> Rule:
        """The method's rule, weighted as is asked for."""
        return replace(self.own_rule, weight_by_examples=self.weight_by_examples or self.own_rule.weight_by_examples)

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Count every layer that is conveyed by the deadline."""
        return until_deadline(options[0], self.deadline or usual_seconds)

    def reach(self, context: RoundContext) -> Floats | None:
        """Return the chances π_{u,l}: certain without a deadline, else observed or known."""
        workload, cohort, deadline = context.workload, context.cohort, context.deadline_seconds
        if deadline is None:
            return np.ones((len(cohort.clients), workload.costs.num_layers))
        if self.reach_from == "observed":
            return context.observed.probability(cohort.clients)
        known = context.devices.reach(workload, cohort, deadline)
        if known is None:
            raise InvalidSetting(
                "method.reach_from is 'known', but these devices have no closed form for it; set it to 'observed'"
            )
        return known


@validated
class LongRounds(LayerWise):
    """A layer-wise method in which every `long_every`-th round lasts `long_factor` times as long (None: no round).

    The devices that never get to the layers near the input get there then.
    """

    long_every: Annotated[int, Field(ge=2)] | None = 10
    long_factor: Annotated[float, Field(ge=1)] = 5.0

    def in_round(self, round: int, usual_seconds: float, observed: ObservedReach) -> Self:
        """Prolong the deadline when it is the turn, and there is need."""
        if self.long_every is None or round % self.long_every or not self.needs_long_rounds(observed):
            return self
        return replace(self, deadline=(self.deadline or usual_seconds) * self.long_factor)

    def needs_long_rounds(self, observed: ObservedReach) -> bool:
        """Say whether there is need of a long round, given who reached what in earlier ones."""
        return True


def shortened(speeds: Floats, seconds: float) -> Floats:
    """Return the share of its batch that each client finishes in some time; 1 where its speed, in jobs/s, is NaN.

    >>> shortened(np.array([0.25, 4.0, np.nan]), seconds=2.0)
    array([0.5, 1. , 1. ])
    """
    return np.clip(np.where(np.isnan(speeds), np.inf, speeds) * seconds, 0.0, 1.0)
