"""FedNova: stragglers take fewer local steps, normalized."""

from collections.abc import Sequence
from typing import Literal

from salf.aggregation import Contributors, Rule
from salf.devices import CompletionTimes
from salf.methods.method import DeadlineMethod
from salf.methods.schedules import RoundSchedule, whole_steps_by
from salf.values import validated


@validated
class FedNova(DeadlineMethod):
    """FedNova (Wang et al., arXiv 2007.07481, equation 11): more local steps give a client no more weight.

    Stragglers send the local steps that they have finished. Each client's change is divided by the sum ‖a_u‖₁ of the
    weights with which its gradients enter it (its number of steps, for SGD without momentum), and the mean is
    multiplied by the mean of these sums. With one local step, a straggler counts if it has finished that step.
    `deadline` is in seconds; the default is the usual time of the experiment's devices.
    """

    name: Literal["fednova"] = "fednova"

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Count the steps that are finished by the deadline."""
        return whole_steps_by(options[0], self.deadline_seconds(usual_seconds))

    @property
    def aggregation_rule(self) -> Rule:
        """The normalized mean over the clients that finished a step."""
        return Contributors(weight_by_examples=self.weight_by_examples, normalise="steps")
