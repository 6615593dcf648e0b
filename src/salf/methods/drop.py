"""Discarding whoever misses the deadline."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from salf.aggregation import Contributors, Everyone, Rule
from salf.devices import CompletionTimes
from salf.methods.method import SynchronousMethod
from salf.methods.schedules import RoundSchedule, until_deadline
from salf.values import Positive, validated


@validated
class DropStragglers(SynchronousMethod):
    """Federated averaging with a deadline: a client that has not conveyed its whole job by then is discarded.

    The baseline of SALF's experiments (arXiv 2403.18375), and what Bonawitz et al. (arXiv 1902.01046, §2.2) do when
    their reporting window closes. `normalise="received"` averages over the set R that made it: w_{t+1} − w_t =
    Σ_R a_u Δ_u / Σ_R a_u. `"everyone"` divides by all who were asked, Σ_R a_u Δ_u / Σ a_u, which is the baseline of the
    SALF authors' public code and shrinks the step by the share of stragglers. `deadline` is in seconds; without one it
    is the usual time of the experiment's devices.
    """

    name: Literal["drop"] = "drop"
    deadline: Positive | None = None
    normalise: Literal["received", "everyone"] = "received"

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Count the clients that finish everything by the deadline."""
        (times,) = options
        by_deadline = until_deadline(times, self.deadline or usual_seconds)
        made_it = times.whole <= (self.deadline or usual_seconds)
        return replace(by_deadline, steps=by_deadline.steps * made_it[:, None])

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over the received, or over everyone."""
        rule = Contributors if self.normalise == "received" else Everyone
        return rule(weight_by_examples=self.weight_by_examples)
