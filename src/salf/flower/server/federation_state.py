"""What one round of a federation hands on to the next."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from salf.flower.server.deadlines import REMEMBERED_ROUNDS, RoundTimes
from salf.simulation import ServerState


@dataclass(frozen=True)
class FederationState:
    """Everything that determines the next round, as far as the server knows it.

    Attributes:
        server: The round, the global model, and what was observed of each node, by its position in `nodes`.
        nodes: The ids of all nodes, in the order in which they were first sampled.
        times: The times of the last rounds, oldest first.
        upload_rates: The observed rate of replies in bytes per second, by node.
    """

    server: ServerState
    nodes: tuple[int, ...] = ()
    times: tuple[RoundTimes, ...] = ()
    upload_rates: Mapping[int, float] = field(default_factory=dict)

    def with_positions(self, nodes: Iterable[int]) -> tuple["FederationState", list[int]]:
        """Return a state that knows all these nodes, and the position of each."""
        wanted = list(nodes)
        known = {node: position for position, node in enumerate(self.nodes)}
        for node in wanted:
            known.setdefault(node, len(known))
        return replace(self, nodes=tuple(known)), [known[node] for node in wanted]

    def after(self, server: ServerState, times: RoundTimes, upload_rates: Mapping[int, float]) -> "FederationState":
        """Return the state after a round.

        Args:
            server: The new model and observations.
            times: The times of the round.
            upload_rates: The rates observed in the round; each is averaged with the rate known before.
        """
        rates = dict(self.upload_rates)
        for node, rate in upload_rates.items():
            rates[node] = (rates.get(node, rate) + rate) / 2
        return FederationState(server, self.nodes, (*self.times, times)[-REMEMBERED_ROUNDS:], rates)
