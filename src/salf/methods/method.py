"""What a method is: a synchronous one says what of a round counts, an asynchronous one what becomes of each arrival."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from salf.devices import Cohort, Devices, Floats, Job, Times
from salf.mixing import Arrival, ServerModel
from salf.reach import ObservedReach
from salf.rules import Rule

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Deadline = Annotated[float, Field(gt=0)]
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Schedule:
    """What a method makes of the times of one round.

    `steps` and `finished`, of shape (clients, layers), count the optimizer steps of each layer that enter the model and
    those whose gradients the clients had completed when the round ended. The round lasts `seconds`; `deadline_seconds`
    is None where there was none. `jobs`, of shape (clients,), says which of the method's jobs each client was given;
    None where there is but one.
    """

    steps: Whole
    finished: Whole
    seconds: float
    deadline_seconds: float | None
    jobs: Whole | None = None


class Scheduling(Protocol):
    """What decides what of one round counts."""

    def schedule(self, options: Sequence[Times], usual_seconds: float) -> Schedule:
        """Decide, given the clients' times for each of the method's jobs."""
        ...


@dataclass(frozen=True)
class Situation:
    """What is known when a round is aggregated: who was asked for what, and how often they got how far before."""

    devices: Devices
    job: Job
    cohort: Cohort
    deadline_seconds: float | None
    observed: ObservedReach


@dataclass(frozen=True)
class Outset:
    """What is known of a run before its first round.

    `rounds` that it will have, the `job` of each client, the `usual_seconds` that it takes, `batch_size` and step size
    η (`step_size`) of a local step, and the mean `speeds` of the clients of a round, in jobs per second, shape
    (clients,).
    """

    rounds: int
    job: Job
    usual_seconds: float
    batch_size: int
    step_size: float
    speeds: Floats


@validated(frozen=True, kw_only=True, config=STRICT)
class Method:
    """A mechanism against stragglers.

    `weight_by_examples` weighs clients by their numbers of examples, not equally; asynchronous methods have no weights.
    """

    @property
    def proximal(self) -> float:
        """μ of the proximal term μ/2 ‖w − w_t‖² in the clients' loss."""
        return 0.0


@validated(frozen=True, kw_only=True, config=STRICT)
class SynchronousMethod(Method, ABC):
    """A method that asks everyone of a round at once, and aggregates once."""

    weight_by_examples: bool = False

    @property
    @abstractmethod
    def aggregation_rule(self) -> Rule:
        """The rule of aggregation."""

    def prepare(self, outset: Outset) -> Self:  # noqa: ARG002
        """Return the method with what it decides before the first round."""
        return self

    def in_round(self, round: int, usual_seconds: float, observed: ObservedReach) -> Scheduling:  # noqa: ARG002
        """Return what decides in one round, the first of which is 1; the method itself where all are alike.

        `observed` is who reached what in earlier rounds.
        """
        return self

    def effort(self, speeds: Floats, usual_seconds: float) -> Floats | None:  # noqa: ARG002
        """Return the share of its batch that each client is given, shape (clients,); None: all of it.

        `speeds`, of that shape, are those that were observed in earlier rounds, in jobs per second, NaN where unknown.
        """
        return None

    @property
    def skips_layers(self) -> bool:
        """Whether a client may convey a layer without those behind it, nearer to the output."""
        return False

    def jobs(self, job: Job) -> tuple[Job, ...]:
        """Return the jobs among which the method chooses for each client; the experiment's own where it does not."""
        return (job,)

    @abstractmethod
    def schedule(self, options: Sequence[Times], usual_seconds: float) -> Schedule:
        """Decide what of a round counts, given the clients' times for each of the `jobs`.

        `usual_seconds` is the deadline of a method that was given none.
        """

    def reach(self, situation: Situation) -> Floats | None:  # noqa: ARG002
        """Return the chances π_{u,l} that the rule uses, shape (clients, layers); None for a rule that uses none."""
        return None


@validated(frozen=True, kw_only=True, config=STRICT)
class AsynchronousMethod(Method, ABC):
    """A method that acts on whatever a client has conveyed, its whole job, at once; nobody waits for anybody.

    What records call a round is a stretch of the virtual clock of `deadline` seconds, which cuts nobody short.
    """

    deadline: Deadline | None = None

    @abstractmethod
    def receive(self, server: ServerModel, arrival: Arrival, statistics: Collection[str]) -> ServerModel:
        """Return what becomes of the server's model; `statistics` names the model's floating-point buffers."""


def until_deadline(times: Times, seconds: float) -> Schedule:
    """Let each client do what it can by a deadline; a round in which everyone finishes early ends early."""
    return Schedule(
        steps=times.steps_by(seconds),
        finished=times.steps_ready_by(seconds),
        seconds=min(seconds, float(times.whole.max())),
        deadline_seconds=seconds,
    )


def whole_steps_by(times: Times, seconds: float) -> Schedule:
    """Let each client convey the steps that it has finished through all layers by a deadline."""
    partial = until_deadline(times, seconds)
    steps = np.broadcast_to(partial.steps.min(axis=1, keepdims=True), partial.steps.shape)
    return Schedule(steps.copy(), partial.finished, partial.seconds, seconds)


def largest_jobs_by(options: Sequence[Times], seconds: float) -> Schedule:
    """Give each client the largest job that it has conveyed whole by a deadline, and nobody part of one.

    `options` are the times of the jobs from the smallest to the largest. A client that is too slow even for the
    smallest is given that, and conveys nothing.
    """
    in_time = np.stack([times.whole for times in options]) <= seconds
    given = np.where(in_time.any(axis=0), len(options) - 1 - in_time[::-1].argmax(axis=0), 0)
    clients = np.arange(len(given))
    whole = np.stack([times.whole for times in options])[given, clients]
    finished = np.stack([times.steps_ready_by(seconds) for times in options])[given, clients]
    steps = np.zeros_like(finished)
    steps[whole <= seconds] = options[0].ready.shape[1]
    return Schedule(steps, finished, min(seconds, float(whole.max())), seconds, given)
