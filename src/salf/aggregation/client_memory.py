"""What each client last sent for each layer, within a budget: what the rule `Memory` aggregates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop
from types import MappingProxyType

from torch import Tensor

from salf.aggregation.sums import LayerSum
from salf.errors import InvalidSetting
from salf.layers import Layer, Layers
from salf.update import Update


@dataclass(frozen=True)
class Remembered:
    """A client's last update of one layer.

    Attributes:
        deltas: Δ by parameter.
        weight: The client's weight in the layer when it sent this.
        steps: How many optimizer steps the layer took.
        turn: The number of the aggregation in which it arrived, from 1.
        examples: How many examples the layer has seen; 0 if the client did not report it.
    """

    deltas: Mapping[str, Tensor]
    weight: float
    steps: int
    turn: int = 0
    examples: int = 0

    @property
    def num_bytes(self) -> int:
        """The memory of the tensors, in bytes."""
        return sum(delta.nbytes for delta in self.deltas.values())


# Client, then layer name. A value: aggregating with `Memory` returns the next one.
ClientMemory = Mapping[int, Mapping[str, Remembered]]


class Recollection:
    """The memory of all clients while a round is aggregated.

    When it would exceed its budget, it forgets the oldest entries; within one round first those of the clients with
    the lowest numbers.

    Args:
        known: The memory after the previous round; it is not changed.
        budget_bytes: The most memory that all remembered tensors may take.
        by_examples: Whether clients weigh by their examples.

    Raises:
        InvalidSetting: Clients weigh by their examples, and something known does not say how many it saw.
    """

    def __init__(self, known: ClientMemory, budget_bytes: int, *, by_examples: bool = False) -> None:
        self._memory = dict(known)
        self._budget_bytes, self._by_examples = budget_bytes, by_examples
        lasts = [(client, layer, last) for client, layers in known.items() for layer, last in layers.items()]
        self.turn = 1 + max((last.turn for *_, last in lasts), default=0)
        if by_examples and not all(last.examples for *_, last in lasts):
            raise InvalidSetting(
                "memory holds updates whose clients did not report their examples; pass weigh='clients', or no memory"
            )
        self._num_bytes = sum(last.num_bytes for *_, last in lasts)
        self._oldest = [(last.turn, client, layer, last.num_bytes) for client, layer, last in lasts]
        heapify(self._oldest)

    @property
    def memory(self) -> ClientMemory:
        """All that is remembered."""
        return MappingProxyType(self._memory)

    def remember(
        self,
        update: Update,
        layers: Layers,
        client: int,
        weights: Sequence[float],
        at_home: Callable[[Mapping[str, Tensor], Sequence[str]], Mapping[str, Tensor]],
    ) -> None:
        """Remember what a client sent, in place of its earlier updates of the same layers.

        Args:
            update: What the client sent.
            layers: The model's layers.
            client: The client's number.
            weights: The client's weight in each layer.
            at_home: Returns some of the deltas as they are to be summed.

        Raises:
            InvalidSetting: The budget does not hold the updates of this round.
        """
        sent: dict[str, Remembered] = {}
        for layer, weight in zip(layers, weights, strict=True):
            if update.includes(layer):
                deltas = {name: delta.clone() for name, delta in at_home(update.deltas, layer.parameters).items()}
                counts = update.steps_of(layer.name), self.turn, update.examples.get(layer.name, 0)
                sent[layer.name] = Remembered(deltas, weight, *counts)
        known = self._memory.get(client, {})
        replaced = sum(known[layer].num_bytes for layer in sent if layer in known)
        self._num_bytes += sum(last.num_bytes for last in sent.values()) - replaced
        self._memory[client] = {**known, **sent}
        while self._num_bytes > self._budget_bytes:
            self._forget_oldest()

    def sum_of(self, layer: Layer, progress: Callable[[int], tuple[float, float]]) -> LayerSum:
        """Sum what every client last sent for a layer; `progress` is `CohortSums.progress`."""
        total = LayerSum()
        for client in sorted(self._memory):
            last = self._memory[client].get(layer.name)
            if last is not None:
                taken, divisor = progress(last.steps)
                relative = total.relative(last.examples if self._by_examples else 1)
                total.add(last.deltas, last.weight / divisor, last.weight, taken, relative)
        return total

    def _forget_oldest(self) -> None:
        while self._oldest:
            turn, client, layer, size = heappop(self._oldest)
            own = self._memory[client]
            if own[layer].turn == turn:  # or it was replaced in this round
                self._memory[client] = {name: last for name, last in own.items() if name != layer}
                self._num_bytes -= size
                return
        raise InvalidSetting(
            f"budget_bytes is {self._budget_bytes}, less than one round's updates; raise it, or ask fewer clients"
        )
