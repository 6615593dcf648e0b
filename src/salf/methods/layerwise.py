"""SALF, and what the layer-wise methods share."""

from abc import ABC
from collections.abc import Sequence
from dataclasses import field, replace
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field

from salf.aggregation import AnyRule, Corrected, Rule
from salf.devices import CompletionTimes
from salf.errors import InvalidSetting
from salf.methods.method import DeadlineMethod, RoundContext
from salf.methods.schedules import RoundSchedule, until_deadline
from salf.participation import ObservedReach
from salf.values import Floats, validated


@validated
class LayerWise(DeadlineMethod, ABC):
    """A method in which each client sends the layers that it has finished at the deadline.

    The rule may use the chance that a client reaches a layer. It is estimated from earlier rounds
    (`reach_from="observed"`), as in a real federation, or computed from the experiment's device model (`"known"`) if
    that has a closed form.
    """

    reach_from: Literal["observed", "known"] = "observed"

    def weighted(self, rule: Rule) -> Rule:
        """Return the rule, which weights clients by examples if either it or the method says so."""
        return replace(rule, weight_by_examples=self.weight_by_examples or rule.weight_by_examples)

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Count every layer that is sent by the deadline."""
        return until_deadline(options[0], self.deadline_seconds(usual_seconds))

    def reach(self, context: RoundContext) -> Floats | None:
        """Return the chances π_{u,l}: 1 in a round without a deadline, else observed or known.

        Raises:
            InvalidSetting: The chances should be known, but the device model has no closed form.
        """
        workload, cohort, deadline = context.workload, context.cohort, context.deadline_seconds
        if deadline is None:
            return np.ones((len(cohort.clients), workload.costs.num_layers))
        if self.reach_from == "observed":
            return context.observed.probability(cohort.clients)
        known = context.devices.reach(workload, cohort, deadline)
        if known is None:
            raise InvalidSetting(
                f"method.reach_from is 'known', but the device model '{context.devices.kind}' has no closed form for "
                "it; set method.reach_from to 'observed'"
            )
        return known


@validated
class ChosenRule(LayerWise, ABC):
    """A layer-wise method whose setting `rule` says how far a layer moves that some clients did not reach."""

    rule: AnyRule = field(default_factory=Corrected)

    @property
    def aggregation_rule(self) -> Rule:
        """The chosen rule."""
        return self.weighted(self.rule)


@validated
class LongRounds(LayerWise, ABC):
    """A layer-wise method in which every `long_every`-th round lasts `long_factor` times as long (None: no round).

    In long rounds, slow devices reach the layers near the input.
    """

    long_every: Annotated[int, Field(ge=2)] | None = 10
    long_factor: Annotated[float, Field(ge=1)] = 5.0

    def in_round(self, round: int, usual_seconds: float, observed: ObservedReach) -> Self:
        """Return the method, with a longer deadline in long rounds."""
        if self.long_every is None or round % self.long_every or not self.needs_long_rounds(observed):
            return self
        return replace(self, deadline=self.deadline_seconds(usual_seconds) * self.long_factor)

    def needs_long_rounds(self, observed: ObservedReach) -> bool:
        """Return whether long rounds are needed, given which clients reached which layers in earlier rounds."""
        return True


def share_finished(speeds: Floats, seconds: float) -> Floats:
    """Return the share of its batch that each client finishes in some time; 1 for unknown speeds.

    Args:
        speeds: In workloads per second, NaN if unknown; shape (clients,).
        seconds: The time.

    >>> share_finished(np.array([0.25, 4.0, np.nan]), seconds=2.0)
    array([0.5, 1. , 1. ])
    """
    return np.clip(np.where(np.isnan(speeds), np.inf, speeds) * seconds, 0.0, 1.0)
