"""Everything that one round hands to the next: weights, observations, and the clients at work."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from salf.aggregation import Buffer, ClientMemory, OptimizerState, Weights
from salf.participation import ObservedReach, ObservedSpeeds


@dataclass(frozen=True)
class ActiveJob:
    """A client at work.

    Attributes:
        client: The client's number.
        job: Which job of the client it is, counted from 1.
        version: The version of the global model from which it began.
        began_s: When it began, in virtual seconds.
        ends_s: When the whole model reaches the server, or the server gives the client up; infinite for neither.
        answers: Whether the model reaches the server.
    """

    client: int
    job: int
    version: int
    began_s: float
    ends_s: float
    answers: bool


@dataclass(frozen=True)
class ActiveJobs:
    """What an asynchronous method hands to the next round, beside the global weights.

    Attributes:
        under_way: The active jobs in the order of their clients.
        starts: The weights from which jobs that answer began, by version.
        begun: How many jobs each client has begun.
        version: How often the global model has moved.
        buffer: Results that wait to move it.
    """

    under_way: tuple[ActiveJob, ...] = ()
    starts: Mapping[int, Weights] = field(default_factory=dict)
    begun: Mapping[int, int] = field(default_factory=dict)
    version: int = 0
    buffer: Buffer = field(default_factory=Buffer)


@dataclass(frozen=True)
class ServerState:
    """Everything that one round hands to the next; with the experiment it determines the rest of the run.

    Attributes:
        round: The number of rounds that have ended.
        time_s: The virtual time in seconds.
        weights: The global model's state dict.
        observed: How often each client has sent each layer.
        memory: What each client last sent for each layer, for the rule `Memory`.
        optimizer: The moments of the server's optimizer, by parameter.
        speeds: How fast each client worked in earlier rounds.
        active_jobs: The clients at work; None for a method with rounds, and before the first round.
    """

    round: int
    time_s: float
    weights: Mapping[str, Tensor]
    observed: ObservedReach
    memory: ClientMemory = field(default_factory=dict)
    optimizer: OptimizerState = field(default_factory=dict)
    speeds: ObservedSpeeds = field(default_factory=ObservedSpeeds)
    active_jobs: ActiveJobs | None = None

    def to(self, device: torch.device) -> "ServerState":
        """Return the state with its tensors on a device; those that are there already are not copied."""
        memory = {
            client: {layer: replace(last, deltas=_moved(last.deltas, device)) for layer, last in layers.items()}
            for client, layers in self.memory.items()
        }
        jobs = self.active_jobs
        if jobs is not None:
            starts = {version: _moved(weights, device) for version, weights in jobs.starts.items()}
            jobs = replace(jobs, starts=starts, buffer=replace(jobs.buffer, sums=_moved(jobs.buffer.sums, device)))
        return replace(
            self,
            weights=_moved(self.weights, device),
            memory=memory,
            optimizer={name: _moved(moments, device) for name, moments in self.optimizer.items()},
            active_jobs=jobs,
        )


def _moved(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
