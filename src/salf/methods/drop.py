"""Drop stragglers: clients that miss the deadline are discarded."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from salf.aggregation import Contributors, Everyone, Rule
from salf.devices import CompletionTimes
from salf.methods.method import DeadlineMethod
from salf.methods.schedules import RoundSchedule, until_deadline
from salf.values import validated


@validated
class DropStragglers(DeadlineMethod):
    """Federated averaging with a deadline: a client that has not sent its whole update by then is discarded.

    This is the baseline of SALF's experiments (arXiv 2403.18375), and what the system of Bonawitz et al. does when its
    reporting window closes (arXiv 1902.01046, §2.2). `normalise="received"` averages over the set R of clients in time:
    w_{t+1} − w_t = Σ_R a_u Δ_u / Σ_R a_u. `"everyone"` divides by the whole cohort, Σ_R a_u Δ_u / Σ a_u, as the public
    code of SALF's authors does; this shrinks the step by the share of stragglers. `deadline` is in seconds; the default
    is the usual time of the experiment's devices.
    """

    name: Literal["drop"] = "drop"
    normalise: Literal["received", "everyone"] = "received"

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Count the clients that finish everything by the deadline."""
        (times,) = options
        deadline = self.deadline_seconds(usual_seconds)
        by_deadline = until_deadline(times, deadline)
        return replace(by_deadline, steps=by_deadline.steps * (times.whole <= deadline)[:, None])

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over the clients in time, or over the cohort."""
        rule = Contributors if self.normalise == "received" else Everyone
        return rule(weight_by_examples=self.weight_by_examples)
