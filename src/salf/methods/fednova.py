"""Fewer local steps for stragglers, normalized."""

from collections.abc import Sequence
from typing import Literal

from salf.aggregation import Contributors, Rule
from salf.devices import CompletionTimes
from salf.methods.method import SynchronousMethod
from salf.methods.schedules import RoundSchedule, whole_steps_by
from salf.values import Positive, validated


@validated
class FedNova(SynchronousMethod):
    """FedNova (Wang et al., arXiv 2007.07481, equation 11): fewer steps, and nobody weighs more for having done more.

    Stragglers convey the local steps they have finished. Each client's change is divided by the sum ‖a_u‖₁ of the
    weights with which its gradients enter it (its number of steps, for SGD without momentum), and the mean is
    multiplied by their mean. With one local step there is nothing to shorten: a straggler counts if it has finished
    that. `deadline` is in seconds; without one it is the usual time of the experiment's devices.
    """

    name: Literal["fednova"] = "fednova"
    deadline: Positive | None = None

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Count the steps that are finished by the deadline."""
        return whole_steps_by(options[0], self.deadline or usual_seconds)

    @property
    def aggregation_rule(self) -> Rule:
        """The normalised mean over the received."""
        return Contributors(weight_by_examples=self.weight_by_examples, normalise="steps")
