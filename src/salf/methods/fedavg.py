"""FedAvg: wait for every client."""

from collections.abc import Sequence
from typing import Literal

from salf.aggregation import Contributors, Rule
from salf.devices import CompletionTimes
from salf.methods.method import SynchronousMethod
from salf.methods.schedules import RoundSchedule, wait_for_first
from salf.values import validated


@validated
class FedAvg(SynchronousMethod):
    """Federated averaging without a deadline: a round lasts as long as its slowest client.

    McMahan et al. (arXiv 1602.05629, algorithm 1): w_{t+1} = Σ a_u w_u / Σ a_u over the clients that answer. That paper
    weights clients by their examples (`weight_by_examples`). By default all clients count equally, as in the
    experiments of SALF's authors. A round waits for a client that never answers as long as the device model says.
    """

    name: Literal["fedavg"] = "fedavg"

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Wait for all clients that answer."""
        return wait_for_first(options[0], len(options[0].whole))

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over the clients that answer."""
        return Contributors(weight_by_examples=self.weight_by_examples)
