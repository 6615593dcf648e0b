"""All that one round hands on to the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from salf.aggregation import ClientMemory, OptimizerState
from salf.participation import ObservedReach, ObservedSpeeds
from salf.simulation.async_jobs import ActiveJobs


@dataclass(frozen=True)
class ServerState:
    """All that one round hands on to the next: with the experiment, it determines the rest of the run.

    `round` counts the rounds that are done, `time_s` is the virtual time, `weights` the global model's state dict.
    `optimizer` is what the server's optimizer remembers, `speeds` how fast the clients were, `active_jobs` who is at work
    for an asynchronous method.
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
        """Return the same with its tensors on a device, not copied where they are there already."""
        memory = {
            client: {layer: replace(last, deltas=_moved(last.deltas, device)) for layer, last in layers.items()}
            for client, layers in self.memory.items()
        }
        return replace(
            self,
            weights=_moved(self.weights, device),
            memory=memory,
            optimizer={name: _moved(moments, device) for name, moments in self.optimizer.items()},
            active_jobs=None if self.active_jobs is None else _flights_moved(self.active_jobs, device),
        )


def _flights_moved(active_jobs: ActiveJobs, device: torch.device) -> ActiveJobs:
    starts = {version: _moved(weights, device) for version, weights in active_jobs.starts.items()}
    return replace(
        active_jobs, starts=starts, buffer=replace(active_jobs.buffer, sums=_moved(active_jobs.buffer.sums, device))
    )


def _moved(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
