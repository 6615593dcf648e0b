"""Straggler-aware layer-wise federated learning."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass as validated

from salf.devices import Floats, Times
from salf.errors import InvalidSetting
from salf.methods.method import STRICT, Deadline, Schedule, Situation, SynchronousMethod, until_deadline
from salf.rules import AnyRule, Corrected, Rule


def _named(value: object) -> object:
    """Let a rule without options be written as its name alone."""
    return {"name": value} if isinstance(value, str) else value


NamedRule = Annotated[AnyRule, BeforeValidator(_named)]


@validated(frozen=True, kw_only=True, config=STRICT)
class LayerWise(SynchronousMethod):
    """A method in which each client conveys the layers that it has finished at the deadline.

    The chances that its rule uses are estimated from earlier rounds (`reach_from="observed"`), as a real federation
    must, or taken from the experiment's device model (`"known"`) where that has a closed form for them. `deadline` is
    in seconds; without one it is the usual time of the experiment's devices.
    """

    deadline: Deadline | None = None
    reach_from: Literal["observed", "known"] = "observed"

    @property
    @abstractmethod
    def own_rule(self) -> Rule:
        """How far a layer moves that not everyone reached."""

    @property
    def aggregation_rule(self) -> Rule:
        """The method's rule, weighted as is asked for."""
        return replace(self.own_rule, weight_by_examples=self.weight_by_examples or self.own_rule.weight_by_examples)

    def schedule(self, options: Sequence[Times], usual_seconds: float) -> Schedule:
        """Count every layer that is conveyed by the deadline."""
        return until_deadline(options[0], self.deadline or usual_seconds)

    def reach(self, situation: Situation) -> Floats | None:
        """Return the chances π_{u,l}: certain without a deadline, else observed or known."""
        job, cohort, deadline = situation.job, situation.cohort, situation.deadline_seconds
        if deadline is None:
            return np.ones((len(cohort.clients), job.costs.num_layers))
        if self.reach_from == "observed":
            return situation.observed.probability(cohort.clients)
        known = situation.devices.reach(job, cohort, deadline)
        if known is None:
            raise InvalidSetting(
                "method.reach_from is 'known', but these devices have no closed form for it; set it to 'observed'"
            )
        return known


@validated(frozen=True, kw_only=True, config=STRICT)
class Salf(LayerWise):
    """SALF (Lang, Cohen and Shlezinger, arXiv 2403.18375): at the deadline each client conveys its finished layers.

    `rule` says how a layer moves that not everyone reached; the paper's, and the default, is `Corrected`: the mean over
    the clients U_l that reached layer l, times 1/(1 − p_l), where p_l is the chance that nobody does.
    """

    name: Literal["salf"] = "salf"
    rule: NamedRule = Field(default_factory=Corrected)

    @property
    def own_rule(self) -> Rule:
        """The chosen rule."""
        return self.rule
