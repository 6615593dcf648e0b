"""All that one round hands on to the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from salf.flights import Flights
from salf.memory import ClientMemory
from salf.reach import ObservedReach
from salf.server import OptimizerState
from salf.speeds import ObservedSpeeds


@dataclass(frozen=True)
class ServerState:
    """All that one round hands on to the next: with the experiment, it determines the rest of the run.

    `round` counts the rounds that are done, `time_s` is the virtual time, `weights` the global model's state dict.
    `optimizer` is what the server's optimizer remembers, `speeds` how fast the clients were, `flights` who is at work
    for an asynchronous method.
    """

    round: int
    time_s: float
    weights: Mapping[str, Tensor]
    observed: ObservedReach
    memory: ClientMemory = field(default_factory=dict)
    optimizer: OptimizerState = field(default_factory=dict)
    speeds: ObservedSpeeds = field(default_factory=ObservedSpeeds)
    flights: Flights | None = None
