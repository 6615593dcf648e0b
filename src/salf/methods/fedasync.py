"""FedAsync: the server mixes in each model as it arrives."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from salf.aggregation import ClientResult, ServerModel, mix
from salf.methods.method import AsynchronousMethod
from salf.values import NonNegative, validated


@validated
class FedAsync(AsynchronousMethod):
    """FedAsync (Xie, Koyejo and Gupta, arXiv 1903.03934, algorithm 1): the server mixes in each model as it arrives.

    x_t = (1 − α_t) x_{t−1} + α_t x_new with α_t = `alpha` · (1 + staleness)^−`a`, that paper's polynomial weighting.
    Staleness counts the server's updates since the client received its model. Clients minimise F_u(w) + `rho`/2
    ‖w − w_start‖². `a` = 0 mixes all models equally. BatchNorm's statistics are mixed like the weights.

    A round is a stretch of virtual time of `deadline` seconds, by default the usual time of the experiment's devices,
    so it is as long as a round of a method with a deadline. Its end interrupts no client.
    """

    name: Literal["fedasync"] = "fedasync"
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.6
    a: NonNegative = 0.5
    rho: NonNegative = 0.005

    def receive(self, server: ServerModel, result: ClientResult, statistics: Collection[str]) -> ServerModel:
        """Mix the client's model in."""
        share = self.alpha * (1 + result.staleness) ** -self.a
        return ServerModel(mix(server.weights, result.model, share), server.version + 1)

    @property
    def proximal(self) -> float:
        """The paper's ρ."""
        return self.rho
