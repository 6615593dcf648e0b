"""FedBuff: the server averages every K results."""

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

from salf.aggregation import ClientResult, ServerModel
from salf.methods.method import AsynchronousMethod
from salf.values import Count, Positive, validated


@validated
class FedBuff(AsynchronousMethod):
    """FedBuff (Nguyen et al., arXiv 2106.06639, algorithm 1): the server updates after every K = `buffer` results.

    The model moves by `server_lr` · (1/K) Σ s(τ_i) Δ_i, where Δ_i is the change by training and s(τ) = 1/√(1 + τ)
    scales down a result of staleness τ. The paper tunes its server's learning rate; 1 is plain averaging. BatchNorm's
    statistics become the mean of the results', weighted by s. `deadline` is as for `"fedasync"`.
    """

    name: Literal["fedbuff"] = "fedbuff"
    buffer: Count = 10
    server_lr: Positive = 1.0

    def receive(self, server: ServerModel, result: ClientResult, statistics: Collection[str]) -> ServerModel:
        """Buffer the result, and move the model if the buffer is full."""
        buffer = server.buffer.add(result, (1 + result.staleness) ** -0.5, statistics)
        if buffer.count < self.buffer:
            return replace(server, buffer=buffer)
        return ServerModel(buffer.move(server.weights, self.server_lr, statistics), server.version + 1)
