"""Deadlines that change over the rounds, and batches that give everyone the same chances."""

from dataclasses import replace
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field

from salf import theory
from salf.aggregation import AnyRule, Corrected, Rule
from salf.errors import InvalidSetting
from salf.methods.layerwise import LayerWise, shortened
from salf.methods.method import RunContext
from salf.participation import ObservedReach
from salf.values import Floats, Positive, validated


@validated
class AdelFL(LayerWise):
    """ADEL-FL (Goren et al., arXiv 2505.23973): deadlines that minimise the convergence bound, and batches to match.

    Over the whole run the deadlines T_1 … T_R take `total_seconds` together, by default as long as constant ones would;
    they minimise the bound of docs/theory.md, for clients that each take exponential times, with the step size that
    they really use. Client u computes on the share m · P_u of its batch, P_u being its speed in earlier rounds, so that
    everyone's depth has the same distribution. The scale m is such that a device of the usual speed is given all.

    The bound's constants are seldom known: `smoothness` ρ_s, `strong_convexity` ρ_c, `gradient_variance` σ²,
    `second_moment` G² and `heterogeneity` Γ. What matters most is ρ_c: rounds longer ago than 1/(η ρ_c) hardly count,
    and are made short. Explicit `deadlines`, in seconds, stand in for the schedule; the last one holds for all further
    rounds.
    """

    name: Literal["adel"] = "adel"
    rule: AnyRule = Field(default_factory=Corrected)
    total_seconds: Positive | None = None
    deadlines: tuple[Positive, ...] = ()
    smoothness: Positive = 1.0
    strong_convexity: Positive = 0.1
    gradient_variance: Annotated[float, Field(ge=0)] = 1.0
    second_moment: Positive = 1.0
    heterogeneity: Annotated[float, Field(ge=0)] = 0.05

    def __post_init__(self) -> None:
        if self.strong_convexity > self.smoothness:
            raise ValueError(
                f"method.strong_convexity is {self.strong_convexity}, more than method.smoothness = {self.smoothness}"
            )

    @property
    def own_rule(self) -> Rule:
        """The chosen rule."""
        return self.rule

    def prepare(self, run_context: RunContext) -> Self:
        """Fill in the deadlines. Raises `InvalidSetting` where `total_seconds` are too few."""
        if self.deadlines:
            return self
        usual = self.deadline or run_context.usual_seconds
        layers = run_context.workload.costs.num_layers
        constants = theory.Constants(
            smoothness=self.smoothness,
            strong_convexity=self.strong_convexity,
            gradient_variance=self.gradient_variance,
            second_moment=self.second_moment,
            heterogeneity=self.heterogeneity,
            num_clients=len(run_context.speeds),
        )
        examples = run_context.batch_size * layers * run_context.workload.local_steps  # of which each passes one layer
        step = min(run_context.step_size, 0.5 / self.strong_convexity)
        try:
            schedule = theory.adaptive_deadlines(
                constants=constants,
                num_layers=layers,
                rounds=run_context.rounds,
                total_seconds=self.total_seconds or usual * run_context.rounds,
                initial_error=1.0,
                rates=np.maximum(run_context.speeds, 1e-9 / usual) * examples,
                layer_seconds=usual / layers,
                step_sizes=np.full(run_context.rounds, step),
            )
        except ValueError as error:
            raise InvalidSetting(f"method.total_seconds is {self.total_seconds}: {error}") from error
        return replace(self, deadlines=tuple(schedule.deadlines_seconds.tolist()))

    def in_round(self, round: int, usual_seconds: float, observed: ObservedReach) -> Self:
        """Return the method with the deadline of a round."""
        return replace(self, deadline=self.deadlines[min(round, len(self.deadlines)) - 1])

    def batch_fraction(self, speeds: Floats, usual_seconds: float) -> Floats:
        """Give each client what it would finish by a constant deadline, and all to one that is not known yet."""
        return shortened(speeds, self.deadline or usual_seconds)
