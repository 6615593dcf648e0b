"""Deadlines that change over the rounds, and batches that equalize the clients' chances."""

from dataclasses import fields, replace
from typing import Literal, Self

import numpy as np

from salf import theory
from salf.errors import InvalidSetting
from salf.methods.layerwise import ChosenRule, share_finished
from salf.methods.method import RunContext
from salf.participation import ObservedReach
from salf.values import Floats, NonNegative, Positive, validated


@validated
class AdelFL(ChosenRule):
    """ADEL-FL (Goren et al., arXiv 2505.23973): deadlines that minimise the convergence bound, and batches to match.

    The deadlines T_1 … T_R take `total_seconds` together, by default as long as constant deadlines would. They minimise
    the bound of docs/theory.md for clients with exponential times and the step size of the experiment. Client u
    computes on the share m · P_u of its batch, where P_u is its speed in earlier rounds, so that the depth of every
    client has the same distribution. The scale m gives a device of the usual speed a whole batch.

    The constants of the bound are seldom known: `smoothness` ρ_s, `strong_convexity` ρ_c, `gradient_variance` σ²,
    `second_moment` G² and `heterogeneity` Γ. ρ_c matters most: rounds longer ago than 1/(η ρ_c) hardly count, and are
    made short. Explicit `deadlines`, in seconds, replace the schedule; the last one holds for all further rounds.
    """

    name: Literal["adel"] = "adel"
    total_seconds: Positive | None = None
    deadlines: tuple[Positive, ...] = ()
    smoothness: Positive = 1.0
    strong_convexity: Positive = 0.1
    gradient_variance: NonNegative = 1.0
    second_moment: Positive = 1.0
    heterogeneity: NonNegative = 0.05

    def __post_init__(self) -> None:
        """Check the order of the two curvatures."""
        if self.strong_convexity > self.smoothness:
            raise ValueError(
                f"method.strong_convexity is {self.strong_convexity}, more than method.smoothness = {self.smoothness}; "
                "choose at most the smoothness"
            )

    def prepare(self, run_context: RunContext) -> Self:
        """Fill in the deadlines.

        Raises:
            InvalidSetting: `total_seconds` are too few.
        """
        if self.deadlines:
            return self
        usual, rounds = self.deadline_seconds(run_context.usual_seconds), run_context.rounds
        layers = run_context.workload.costs.num_layers
        layer_passes = run_context.batch_size * layers * run_context.workload.local_steps  # of single examples
        step = min(run_context.step_size, 0.5 / self.strong_convexity)
        shared = {field.name for field in fields(theory.Constants)} - {"num_clients"}
        assumed = {name: getattr(self, name) for name in shared}
        try:
            schedule = theory.adaptive_deadlines(
                constants=theory.Constants(num_clients=len(run_context.speeds), **assumed),
                num_layers=layers,
                rounds=rounds,
                total_seconds=self.total_seconds or usual * rounds,
                initial_error=1.0,
                rates=np.maximum(run_context.speeds, 1e-9 / usual) * layer_passes,
                layer_seconds=usual / layers,
                step_sizes=np.full(rounds, step),
            )
        except ValueError as error:
            raise InvalidSetting(f"method.total_seconds is {self.total_seconds}: {error}") from error
        return replace(self, deadlines=tuple(schedule.deadlines_seconds.tolist()))

    def in_round(self, round: int, usual_seconds: float, observed: ObservedReach) -> Self:
        """Return the method with the deadline of a round."""
        return replace(self, deadline=self.deadlines[min(round, len(self.deadlines)) - 1])

    def batch_fraction(self, speeds: Floats, usual_seconds: float) -> Floats:
        """Give each client what it finishes by a constant deadline, and a whole batch if its speed is unknown."""
        return share_finished(speeds, self.deadline_seconds(usual_seconds))
