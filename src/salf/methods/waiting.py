"""Waiting for everyone."""

from typing import Literal

import numpy as np
from pydantic.dataclasses import dataclass as validated

from salf.devices import Times
from salf.methods.method import STRICT, Method, Schedule
from salf.rules import Contributors, Rule


@validated(frozen=True, kw_only=True, config=STRICT)
class FedAvg(Method):
    """Federated averaging (McMahan et al., 2017) without a deadline: a round lasts as long as its slowest client.

    A client that never answers is given up after the time that its device model states.
    """

    name: Literal["fedavg"] = "fedavg"

    def schedule(self, times: Times, usual_seconds: float) -> Schedule:  # noqa: ARG002
        """Wait for everyone who answers at all."""
        answering = np.isfinite(times.whole)
        seconds = float(np.where(answering, times.whole, times.give_up_seconds).max())
        steps = times.steps_ready_by(np.inf) * answering[:, None]
        return Schedule(steps=steps, finished=times.steps_ready_by(seconds), seconds=seconds, deadline_seconds=None)

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over the received."""
        return Contributors(weight_by_examples=self.weight_by_examples)
