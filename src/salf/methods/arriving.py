"""Acting on each client's work as it arrives, without rounds."""

from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from salf.methods.method import STRICT, AsynchronousMethod
from salf.mixing import Arrival, ServerModel, mix


@validated(frozen=True, kw_only=True, config=STRICT)
class FedAsync(AsynchronousMethod):
    """FedAsync (Xie, Koyejo and Gupta, arXiv 1903.03934, algorithm 1): each arriving model is mixed in at once.

    x_t = (1 − α_t) x_{t−1} + α_t x_new with α_t = `alpha` · (1 + staleness)^−`a`, that paper's polynomial weighting,
    where staleness counts the server's updates since the client was given its model. Clients minimise
    F_u(w) + `rho`/2 ‖w − w_start‖². `a` = 0 mixes all alike. BatchNorm's statistics are mixed as the weights are.

    A round is a stretch of virtual time of `deadline` seconds, without it of the usual time of the experiment's
    devices, as long as one of a method with a deadline; it cuts nobody short.
    """

    name: Literal["fedasync"] = "fedasync"
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.6
    a: Annotated[float, Field(ge=0)] = 0.5
    rho: Annotated[float, Field(ge=0)] = 0.005

    def receive(self, server: ServerModel, arrival: Arrival, statistics: Collection[str]) -> ServerModel:  # noqa: ARG002
        """Mix the client's model in."""
        share = self.alpha * (1 + arrival.staleness) ** -self.a
        return ServerModel(mix(server.weights, arrival.model, share), server.version + 1)

    @property
    def proximal(self) -> float:
        """The paper's ρ."""
        return self.rho


@validated(frozen=True, kw_only=True, config=STRICT)
class FedBuff(AsynchronousMethod):
    """FedBuff (Nguyen et al., arXiv 2106.06639, algorithm 1): the server moves after every K = `buffer` arrivals.

    It moves by `server_lr` · (1/K) Σ s(τ_i) Δ_i, where Δ_i is what training changed and s(τ) = 1/√(1 + τ) scales
    down what is τ moves of the server old. The paper tunes its server's learning rate; 1 is plain averaging.
    BatchNorm's statistics become the mean of the arrivals', weighted by s. `deadline` is as for `"fedasync"`.
    """

    name: Literal["fedbuff"] = "fedbuff"
    buffer: Annotated[int, Field(ge=1, strict=True)] = 10
    server_lr: Annotated[float, Field(gt=0)] = 1.0

    def receive(self, server: ServerModel, arrival: Arrival, statistics: Collection[str]) -> ServerModel:
        """Keep what has arrived, and move once there is enough."""
        buffer = server.buffer.add(arrival, (1 + arrival.staleness) ** -0.5, statistics)
        if buffer.count < self.buffer:
            return replace(server, buffer=buffer)
        return ServerModel(buffer.move(server.weights, self.server_lr, statistics), server.version + 1)
