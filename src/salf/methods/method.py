"""What a method decides about a round."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from typing_extensions import TypeIs

from salf.aggregation import ClientResult, Rule, ServerModel
from salf.devices import Cohort, CompletionTimes, Devices, Workload
from salf.methods.schedules import RoundSchedule
from salf.participation import ObservedReach
from salf.values import Floats, Positive, validated


class Scheduling(Protocol):
    """What decides what of one round counts."""

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Decide, given the clients' times for each of the method's jobs."""
        ...


@dataclass(frozen=True)
class RoundContext:
    """What is known when a round is aggregated: who was asked for what, and how often they got how far before."""

    devices: Devices
    workload: Workload
    cohort: Cohort
    deadline_seconds: float | None
    observed: ObservedReach


@dataclass(frozen=True)
class RunContext:
    """What is known of a run before its first round.

    `rounds` that it will have, the `workload` of each client, the `usual_seconds` that it takes, `batch_size` and step size
    η (`step_size`) of a local step, and the mean `speeds` of the clients of a round, in jobs per second, shape
    (clients,).
    """

    rounds: int
    workload: Workload
    usual_seconds: float
    batch_size: int
    step_size: float
    speeds: Floats


@dataclass(frozen=True)
class Submodels:
    """Sub-models of several widths that clients train in place of the whole model.

    `widths` go from the widest to the narrowest, each in (0, 1]. With `scaler`, hidden layers of a sub-model are
    multiplied by 1/width in training. With `mask_labels`, a client's loss ignores classes of which it has no examples.
    """

    widths: tuple[float, ...]
    scaler: bool
    mask_labels: bool


@validated
class Method:
    """A mechanism against stragglers.

    `weight_by_examples` weighs clients by their numbers of examples, not equally; asynchronous methods have no weights.
    """

    name: str

    @property
    def proximal(self) -> float:
        """μ of the proximal term μ/2 ‖w − w_t‖² in the clients' loss."""
        return 0.0


@validated
class SynchronousMethod(Method, ABC):
    """A method that asks everyone of a round at once, and aggregates once."""

    weight_by_examples: bool = False

    @property
    @abstractmethod
    def aggregation_rule(self) -> Rule:
        """The rule of aggregation."""

    def prepare(self, run_context: RunContext) -> Self:
        """Return the method with what it decides before the first round."""
        return self

    def in_round(self, round: int, usual_seconds: float, observed: ObservedReach) -> Scheduling:
        """Return what decides in one round, the first of which is 1; the method itself where all are alike.

        `observed` is who reached what in earlier rounds.
        """
        return self

    def batch_fraction(self, speeds: Floats, usual_seconds: float) -> Floats | None:
        """Return the share of its batch that each client is given, shape (clients,); None: all of it.

        `speeds`, of that shape, are those that were observed in earlier rounds, in jobs per second, NaN where unknown.
        """
        return None

    @property
    def skips_layers(self) -> bool:
        """Whether a client may convey a layer without those behind it, nearer to the output."""
        return False

    @property
    def submodels(self) -> Submodels | None:
        """The sub-models that clients train; None if every client trains the whole model."""
        return None

    def workloads(self, workload: Workload) -> tuple[Workload, ...]:
        """Return the jobs among which the method chooses for each client; the experiment's own where it does not."""
        return (workload,)

    @abstractmethod
    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Decide what of a round counts, given the clients' times for each of the `workloads`.

        `usual_seconds` is the deadline of a method that was given none.
        """

    def reach(self, context: RoundContext) -> Floats | None:
        """Return the chances π_{u,l} that the rule uses, shape (clients, layers); None for a rule that uses none."""
        return None


@validated
class AsynchronousMethod(Method, ABC):
    """A method that acts on whatever a client has conveyed, its whole job, at once; nobody waits for anybody.

    What records call a round is a stretch of the virtual clock of `deadline` seconds, which cuts nobody short.
    """

    deadline: Positive | None = None

    @abstractmethod
    def receive(self, server: ServerModel, arrival: ClientResult, statistics: Collection[str]) -> ServerModel:
        """Return what becomes of the server's model; `statistics` names the model's floating-point buffers."""


def is_asynchronous(method: Method) -> TypeIs[AsynchronousMethod]:
    """Return whether a method acts on each result as it arrives, without rounds."""
    return isinstance(method, AsynchronousMethod)


def is_synchronous(method: Method) -> TypeIs[SynchronousMethod]:
    """Return whether a method works in rounds."""
    return isinstance(method, SynchronousMethod)
