"""Letting stragglers do fewer local steps."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from salf.devices import Times
from salf.methods.method import STRICT, Deadline, Schedule, SynchronousMethod, whole_steps_by
from salf.rules import Contributors, Rule


@validated(frozen=True, kw_only=True, config=STRICT)
class FedProx(SynchronousMethod):
    """FedProx (Li et al., arXiv 1812.06127, algorithm 2): stragglers convey the local steps they have finished.

    Clients minimise F_u(w) + `mu`/2 ‖w − w_t‖² (equation 2), which keeps those who do more steps from running away; the
    result is the mean over whoever finished one step. 1 is what the paper uses for MNIST, FEMNIST and synthetic data;
    it tunes it over 0.001, 0.01, 0.1 and 1. With one local step there is nothing to shorten: a straggler counts if it
    has finished that. `deadline` is in seconds; without one it is the usual time of the experiment's devices.
    """

    name: Literal["fedprox"] = "fedprox"
    deadline: Deadline | None = None
    mu: Annotated[float, Field(ge=0)] = 1.0

    def schedule(self, options: Sequence[Times], usual_seconds: float) -> Schedule:
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


@validated(frozen=True, kw_only=True, config=STRICT)
class FedNova(SynchronousMethod):
    """FedNova (Wang et al., arXiv 2007.07481, equation 11): fewer steps, and nobody weighs more for having done more.

    Stragglers convey the local steps they have finished. Each client's change is divided by the sum ‖a_u‖₁ of the
    weights with which its gradients enter it (its number of steps, for SGD without momentum), and the mean is
    multiplied by their mean. With one local step there is nothing to shorten: a straggler counts if it has finished
    that. `deadline` is in seconds; without one it is the usual time of the experiment's devices.
    """

    name: Literal["fednova"] = "fednova"
    deadline: Deadline | None = None

    def schedule(self, options: Sequence[Times], usual_seconds: float) -> Schedule:
        """Count the steps that are finished by the deadline."""
        return whole_steps_by(options[0], self.deadline or usual_seconds)

    @property
    def aggregation_rule(self) -> Rule:
        """The normalised mean over the received."""
        return Contributors(weight_by_examples=self.weight_by_examples, normalise="steps")
