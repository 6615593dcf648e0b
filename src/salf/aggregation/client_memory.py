"""What each client last conveyed for each layer, within a budget: what the rule `Memory` aggregates."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop
from types import MappingProxyType

from torch import Tensor

from salf.errors import InvalidSetting


@dataclass(frozen=True)
class Remembered:
    """The last thing a client conveyed for one layer; `turn` counts the aggregations up to that."""

    deltas: Mapping[str, Tensor]
    weight: float
    steps: int
    turn: int = 0

    @property
    def num_bytes(self) -> int:
        """How much memory it takes."""
        return sum(delta.nbytes for delta in self.deltas.values())


# Client, then layer name. A value: aggregating with `Memory` returns the next one.
ClientMemory = Mapping[int, Mapping[str, Remembered]]


class Recollection:
    """The memory of all clients while a round is aggregated; `known`, that of the rounds before, is never changed.

    It takes `budget_bytes` at most. Where more would be remembered, what was conveyed longest ago is forgotten: of the
    same round first what the clients with the lowest numbers conveyed.
    """

    def __init__(self, known: ClientMemory, budget_bytes: int) -> None:
        self._memory = dict(known)
        self._budget_bytes = budget_bytes
        entries = [
            (last.turn, client, layer, last.num_bytes)
            for client, layers in known.items()
            for layer, last in layers.items()
        ]
        self.turn = 1 + max((turn for turn, *_ in entries), default=0)
        self._num_bytes = sum(size for *_, size in entries)
        self._oldest = entries
        heapify(self._oldest)

    @property
    def memory(self) -> ClientMemory:
        """All that is remembered."""
        return MappingProxyType(self._memory)

    def keep(self, client: int, conveyed: Mapping[str, Remembered]) -> None:
        """Remember what a client conveyed, by layer, in place of what it conveyed for these layers before.

        Raises `InvalidSetting` where the budget does not hold what is conveyed in this very round.
        """
        known = self._memory.get(client, {})
        replaced = sum(known[layer].num_bytes for layer in conveyed if layer in known)
        self._num_bytes += sum(last.num_bytes for last in conveyed.values()) - replaced
        self._memory[client] = {**known, **conveyed}
        while self._num_bytes > self._budget_bytes:
            self._forget_oldest()

    def of(self, layer: str) -> Iterator[Remembered]:
        """Yield what every client last conveyed for a layer, in the order of the clients' numbers."""
        for client in sorted(self._memory):
            last = self._memory[client].get(layer)
            if last is not None:
                yield last

    def _forget_oldest(self) -> None:
        while self._oldest:
            turn, client, layer, size = heappop(self._oldest)
            own = self._memory[client]
            if own[layer].turn == turn:  # or it was replaced in this round
                self._memory[client] = {name: last for name, last in own.items() if name != layer}
                self._num_bytes -= size
                return
        raise InvalidSetting(
            f"the rule 'memory' may use budget_bytes = {self._budget_bytes}, less than what the clients of one round "
            f"convey ({self._num_bytes} bytes and more); raise it, or ask fewer clients in each round"
        )
