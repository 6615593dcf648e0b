"""Methods that average whole updates, or the whole local steps that each client has finished."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from salf.aggregation import Contributors, Everyone, Rule
from salf.devices import CompletionTimes
from salf.methods.method import DeadlineMethod, SynchronousMethod
from salf.methods.schedules import RoundSchedule, until_deadline, wait_for_first, whole_steps_by
from salf.values import NonNegative, validated


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


@validated
class OverSelection(SynchronousMethod):
    """Over-selection: ask more clients than needed, and keep the first (Bonawitz et al., arXiv 1902.01046, §2.2, §9).

    The cohort has n clients, as for every method. The first ⌈n / `ask`⌉ to finish count, and the model becomes their
    mean; the work of the others is lost. 1.3 is what that system asks for each client that it needs.
    """

    name: Literal["overselection"] = "overselection"
    ask: Annotated[float, Field(ge=1)] = 1.3

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Wait for the first clients."""
        return wait_for_first(options[0], math.ceil(len(options[0].whole) / self.ask))

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over the first clients."""
        return Contributors(weight_by_examples=self.weight_by_examples)


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
