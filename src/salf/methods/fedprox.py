"""Fewer local steps for stragglers, with a proximal term."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from salf.aggregation import Contributors, Rule
from salf.devices import CompletionTimes
from salf.methods.method import SynchronousMethod
from salf.methods.schedules import RoundSchedule, whole_steps_by
from salf.values import Positive, validated


@validated
class FedProx(SynchronousMethod):
    """FedProx (Li et al., arXiv 1812.06127, algorithm 2): stragglers convey the local steps they have finished.

    Clients minimise F_u(w) + `mu`/2 ‖w − w_t‖² (equation 2), which keeps those who do more steps from running away; the
    result is the mean over whoever finished one step. 1 is what the paper uses for MNIST, FEMNIST and synthetic data;
    it tunes it over 0.001, 0.01, 0.1 and 1. With one local step there is nothing to shorten: a straggler counts if it
    has finished that. `deadline` is in seconds; without one it is the usual time of the experiment's devices.
    """

    name: Literal["fedprox"] = "fedprox"
    deadline: Positive | None = None
    mu: Annotated[float, Field(ge=0)] = 1.0

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Count the steps that are finished by the deadline."""
        return whole_steps_by(options[0], self.deadline or usual_seconds)

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over the received."""
        return Contributors(weight_by_examples=self.weight_by_examples)

    @property
    def proximal(self) -> float:
        """The paper's μ."""
        return self.mu
