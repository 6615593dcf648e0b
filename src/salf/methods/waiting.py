"""Waiting for everyone, or for those who come first."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from salf.devices import Times
from salf.methods.method import STRICT, Schedule, SynchronousMethod
from salf.rules import Contributors, Rule


@validated(frozen=True, kw_only=True, config=STRICT)
class FedAvg(SynchronousMethod):
    """Federated averaging without a deadline: a round lasts as long as its slowest client.

    McMahan et al. (arXiv 1602.05629, algorithm 1): w_{t+1} = Σ a_u w_u / Σ a_u over those who answer. That paper weighs
    clients by their examples (`weight_by_examples`); by default all count alike, as in the experiments of SALF's
    authors. A client that never answers is given up after the time that its device model states.
    """

    name: Literal["fedavg"] = "fedavg"

    def schedule(self, options: Sequence[Times], usual_seconds: float) -> Schedule:  # noqa: ARG002
        """Wait for everyone who answers at all."""
        return _wait(options[0], len(options[0].whole))

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over the received."""
        return Contributors(weight_by_examples=self.weight_by_examples)


@validated(frozen=True, kw_only=True, config=STRICT)
class OverSelection(SynchronousMethod):
    """Asking more clients than are needed, and keeping the first (Bonawitz et al., arXiv 1902.01046, §2.2 and §9).

    Of the n clients that the experiment asks, as of every method, the first ⌈n / `ask`⌉ count, and the model becomes
    their mean; the others' work is lost. 1.3 is what that system asks for each client that it needs.
    """

    name: Literal["overselection"] = "overselection"
    ask: Annotated[float, Field(ge=1)] = 1.3

    def schedule(self, options: Sequence[Times], usual_seconds: float) -> Schedule:  # noqa: ARG002
        """Wait for the first."""
        return _wait(options[0], math.ceil(len(options[0].whole) / self.ask))

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over the received."""
        return Contributors(weight_by_examples=self.weight_by_examples)


def _wait(times: Times, count: int) -> Schedule:
    """Wait for the first `count` clients that answer at all; of those who answer together the first in order."""
    answering = np.isfinite(times.whole)
    first = np.zeros_like(answering)
    first[np.argsort(times.whole, kind="stable")[:count]] = True
    counted = first & answering
    seconds = float(np.where(answering, times.whole, times.give_up_seconds)[first].max())
    return Schedule(
        steps=times.steps_ready_by(np.inf) * counted[:, None],
        finished=times.steps_ready_by(seconds),
        seconds=seconds,
        deadline_seconds=None,
    )
