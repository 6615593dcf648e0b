"""Asynchronous mixing of each arriving model."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from salf.aggregation import ClientResult, ServerModel, mix
from salf.methods.method import AsynchronousMethod
from salf.values import validated


@validated
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

    def receive(self, server: ServerModel, arrival: ClientResult, statistics: Collection[str]) -> ServerModel:
        """Mix the client's model in."""
        share = self.alpha * (1 + arrival.staleness) ** -self.a
        return ServerModel(mix(server.weights, arrival.model, share), server.version + 1)

    @property
    def proximal(self) -> float:
        """The paper's ρ."""
        return self.rho
