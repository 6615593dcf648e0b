"""Asynchronous averaging of every K results."""

from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from salf.aggregation import ClientResult, ServerModel
from salf.methods.method import AsynchronousMethod
from salf.values import validated


@validated
class FedBuff(AsynchronousMethod):
    """FedBuff (Nguyen et al., arXiv 2106.06639, algorithm 1): the server moves after every K = `buffer` arrivals.

    It moves by `server_lr` · (1/K) Σ s(τ_i) Δ_i, where Δ_i is what training changed and s(τ) = 1/√(1 + τ) scales
    down what is τ moves of the server old. The paper tunes its server's learning rate; 1 is plain averaging.
    BatchNorm's statistics become the mean of the arrivals', weighted by s. `deadline` is as for `"fedasync"`.
    """

    name: Literal["fedbuff"] = "fedbuff"
    buffer: Annotated[int, Field(ge=1, strict=True)] = 10
    server_lr: Annotated[float, Field(gt=0)] = 1.0

    def receive(self, server: ServerModel, arrival: ClientResult, statistics: Collection[str]) -> ServerModel:
        """Keep what has arrived, and move once there is enough."""
        buffer = server.buffer.add(arrival, (1 + arrival.staleness) ** -0.5, statistics)
        if buffer.count < self.buffer:
            return replace(server, buffer=buffer)
        return ServerModel(buffer.move(server.weights, self.server_lr, statistics), server.version + 1)
