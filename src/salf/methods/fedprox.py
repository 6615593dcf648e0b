"""FedProx: stragglers take fewer local steps, with a proximal term."""

from collections.abc import Sequence
from typing import Literal

from salf.devices import CompletionTimes
from salf.methods.method import DeadlineMethod
from salf.methods.schedules import RoundSchedule, whole_steps_by
from salf.values import NonNegative, validated


@validated
class FedProx(DeadlineMethod):
    """FedProx (Li et al., arXiv 1812.06127, algorithm 2): stragglers send the local steps that they have finished.

    Clients minimise F_u(w) + `mu`/2 ‖w − w_t‖² (equation 2), which limits the drift of clients with more steps. The
    result is the mean over the clients that finished a step. The paper uses `mu` = 1 for MNIST, FEMNIST and synthetic
    data, tuned over 0.001, 0.01, 0.1 and 1. With one local step, a straggler counts if it has finished that step.
    `deadline` is in seconds; the default is the usual time of the experiment's devices.
    """

    name: Literal["fedprox"] = "fedprox"
    mu: NonNegative = 1.0

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Count the steps that are finished by the deadline."""
        return whole_steps_by(options[0], self.deadline_seconds(usual_seconds))

    @property
    def proximal(self) -> float:
        """The paper's μ."""
        return self.mu
