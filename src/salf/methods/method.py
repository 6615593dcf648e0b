"""What every synchronous method is: what counts in a round, how long the round lasts, and by which rule it counts."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from salf.devices import Cohort, Devices, Floats, Job, Times
from salf.reach import ObservedReach
from salf.rules import Rule

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Schedule:
    """What a method makes of the times of one round.

    `steps` and `finished`, of shape (clients, layers), count the optimizer steps of each layer that enter the model and
    those whose gradients the clients had completed when the round ended. The round lasts `seconds`; `deadline_seconds`
    is None where there was none.
    """

    steps: npt.NDArray[np.int64]
    finished: npt.NDArray[np.int64]
    seconds: float
    deadline_seconds: float | None


@dataclass(frozen=True)
class Situation:
    """What is known when a round is aggregated: who was asked for what, and how often they got how far before."""

    devices: Devices
    job: Job
    cohort: Cohort
    deadline_seconds: float | None
    observed: ObservedReach


@validated(frozen=True, kw_only=True, config=STRICT)
class Method(ABC):
    """A mechanism against stragglers. `weight_by_examples` weighs clients by their numbers of examples, not equally."""

    weight_by_examples: bool = False

    @abstractmethod
    def schedule(self, times: Times, usual_seconds: float) -> Schedule:
        """Decide what of the round counts; `usual_seconds` is the deadline of a method that was given none."""

    @property
    @abstractmethod
    def aggregation_rule(self) -> Rule:
        """The rule of aggregation."""

    def reach(self, situation: Situation) -> Floats | None:  # noqa: ARG002
        """Return the chances π_{u,l} that the rule uses, shape (clients, layers); None for a rule that uses none."""
        return None


def until_deadline(times: Times, seconds: float) -> Schedule:
    """Let each client do what it can by a deadline; a round in which everyone finishes early ends early."""
    return Schedule(
        steps=times.steps_by(seconds),
        finished=times.steps_ready_by(seconds),
        seconds=min(seconds, float(times.whole.max())),
        deadline_seconds=seconds,
    )
