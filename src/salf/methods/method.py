"""What a method decides: the protocols of synchronous and asynchronous methods."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from typing_extensions import TypeIs

from salf.aggregation import ClientResult, Contributors, Rule, ServerModel
from salf.devices import Cohort, CompletionTimes, Devices, Workload
from salf.methods.schedules import RoundSchedule
from salf.participation import ObservedReach
from salf.values import Floats, Positive, validated


class Scheduling(Protocol):
    """Decides which steps count in one round. Every synchronous method does."""

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Decide, given the clients' times for each of the method's workloads; see `SynchronousMethod.schedule`."""
        ...


@dataclass(frozen=True)
class RoundContext:
    """What is known when a round is aggregated.

    Attributes:
        devices: The device model of the experiment.
        workload: What each client computes in a round.
        cohort: The clients of the round.
        deadline_seconds: The deadline of the round; None if it had none.
        observed: Which clients reached which layers in earlier rounds.
    """

    devices: Devices
    workload: Workload
    cohort: Cohort
    deadline_seconds: float | None
    observed: ObservedReach


@dataclass(frozen=True)
class RunContext:
    """What is known before the first round of a run.

    Attributes:
        rounds: The number of rounds.
        workload: What each client computes in a round.
        usual_seconds: How long the workload takes an ordinary device.
        batch_size: Examples in a batch.
        step_size: The learning rate η of a local step.
        speeds: The mean speeds of the clients of a round, in workloads per second, shape (clients,).
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

    Attributes:
        widths: Shares of the channels of hidden layers, each in (0, 1], from the widest to the narrowest.
        scaler: Whether hidden layers of a sub-model are multiplied by 1/width in training.
        mask_labels: Whether a client's loss ignores classes without examples at that client.
    """

    widths: tuple[float, ...]
    scaler: bool
    mask_labels: bool


@validated
class Method:
    """A way to handle stragglers, as a frozen value whose fields are its settings.

    Derive from `SynchronousMethod` or `AsynchronousMethod`, and give `name` a default. A field `deadline` is in
    seconds; a method without one uses the usual time of the experiment's devices.

    >>> import salf
    >>> method = salf.Experiment.load("digits").method
    >>> isinstance(method, salf.Method), method.name
    (True, 'salf')
    """

    name: str

    @property
    def proximal(self) -> float:
        """μ of the proximal term μ/2 ‖w − w_t‖² in the clients' loss."""
        return 0.0


@validated
class SynchronousMethod(Method, ABC):
    """A method that works in rounds: it sends the model to a cohort, waits, and aggregates once.

    A method must define `schedule` and `aggregation_rule`; all else has a default. The simulator calls `prepare` once,
    then in each round `batch_fraction`, `in_round`, `schedule` and `reach`, in this order.

    `weight_by_examples`: weight clients by their numbers of examples instead of equally.

    >>> from typing import Literal
    >>> from salf.aggregation import Contributors
    >>> from salf.methods import wait_for_first
    >>> @validated
    ... class FirstHalf(SynchronousMethod):
    ...     name: Literal["first-half"] = "first-half"
    ...
    ...     def schedule(self, options, usual_seconds):
    ...         return wait_for_first(options[0], len(options[0].whole) // 2)
    ...
    ...     @property
    ...     def aggregation_rule(self):
    ...         return Contributors(weight_by_examples=self.weight_by_examples)
    >>> FirstHalf()
    FirstHalf(name='first-half', weight_by_examples=False)
    """

    weight_by_examples: bool = False

    @property
    @abstractmethod
    def aggregation_rule(self) -> Rule:
        """The rule that aggregates a round."""

    def prepare(self, run_context: RunContext) -> Self:
        """Return the method with everything that it decides before the first round."""
        return self

    def in_round(self, round: int, usual_seconds: float, observed: ObservedReach) -> Scheduling:
        """Return what schedules one round; by default the method itself.

        Args:
            round: The number of the round, from 1.
            usual_seconds: The deadline of a method that has none.
            observed: Which clients reached which layers in earlier rounds.
        """
        return self

    def batch_fraction(self, speeds: Floats, usual_seconds: float) -> Floats | None:
        """Return the share of its batch that each client computes on, shape (clients,); None for whole batches.

        Args:
            speeds: Speeds observed in earlier rounds, in workloads per second, NaN if unknown; shape (clients,).
            usual_seconds: The deadline of a method that has none.
        """
        return None

    @property
    def skips_layers(self) -> bool:
        """Whether a client may send a layer without all layers nearer to the output."""
        return False

    @property
    def submodels(self) -> Submodels | None:
        """The sub-models that clients train; None if every client trains the whole model."""
        return None

    def workloads(self, workload: Workload) -> tuple[Workload, ...]:
        """Return the workloads among which the method chooses for each client; by default the experiment's own."""
        return (workload,)

    @abstractmethod
    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Decide when a round ends and how many steps of each layer count.

        Args:
            options: The clients' times for each of the `workloads`.
            usual_seconds: The deadline of a method that has none.
        """

    def reach(self, context: RoundContext) -> Floats | None:
        """Return the chances π_{u,l} that the rule uses, shape (clients, layers); None for a rule that uses none."""
        return None


@validated
class DeadlineMethod(SynchronousMethod, ABC):
    """A synchronous method with a `deadline` in seconds; None stands for the usual time of the devices.

    By default, a layer becomes its mean over the clients that trained it by the deadline.
    """

    deadline: Positive | None = None

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over the clients that trained a layer."""
        return Contributors(weight_by_examples=self.weight_by_examples)

    def deadline_seconds(self, usual_seconds: float) -> float:
        """Return the deadline that applies, given the usual time of the experiment's devices."""
        return self.deadline or usual_seconds


@validated
class AsynchronousMethod(Method, ABC):
    """A method that updates the model as soon as a client's whole result arrives. No client waits for another.

    In records, a round is a stretch of virtual time of `deadline` seconds. Its end interrupts no client.

    >>> from salf.methods import FedBuff
    >>> FedBuff(deadline=2.0).round_seconds(5.0), FedBuff().round_seconds(5.0)
    (2.0, 5.0)
    """

    deadline: Positive | None = None

    def round_seconds(self, usual_seconds: float) -> float:
        """Return how long a round lasts, given the usual time of the experiment's devices."""
        return self.deadline or usual_seconds

    @abstractmethod
    def receive(self, server: ServerModel, result: ClientResult, statistics: Collection[str]) -> ServerModel:
        """Return the server's model after a client's result.

        Args:
            server: The model, and results that wait to change it.
            result: What the client trained, and from which version.
            statistics: The names of the model's floating-point buffers.
        """


def is_asynchronous(method: Method) -> TypeIs[AsynchronousMethod]:
    """Return whether a method acts on each result as it arrives, without rounds."""
    return isinstance(method, AsynchronousMethod)


def is_synchronous(method: Method) -> TypeIs[SynchronousMethod]:
    """Return whether a method works in rounds."""
    return isinstance(method, SynchronousMethod)
