"""What the finished steps of a training loop tell about its next ones."""

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

_REMEMBERED = 2  # steps


@dataclass
class LoopPattern:
    """How a loop uses its backward passes.

    Attributes:
        arrivals: How often each gradient arrived in the last whole pass, by parameter; None before the first one.
        calls: The number of backward calls in that pass.

    >>> pattern = LoopPattern()
    >>> for passes in (4, 4, 1, 4, 4, 1):  # two epochs of nine batches each
    ...     pattern.learn_step({"head": passes}, {})
    >>> pattern.passes_per_step
    4
    """

    arrivals: Mapping[str, int] | None = None
    calls: int = 1
    _passes: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    _discarded: defaultdict[str, deque[int]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=_REMEMBERED))
    )

    def learn_step(self, passes: Mapping[str, int], discarded: Mapping[str, int]) -> None:
        """Learn from an optimizer step.

        Args:
            passes: For each layer of the step, how many backward passes its gradient is made of.
            discarded: How many passes before these the loop has discarded, by layer; 0 where a layer is absent.
        """
        self._passes.append(max(passes.values()))
        for layer in passes:
            self._discarded[layer].append(discarded.get(layer, 0))

    @property
    def passes_per_step(self) -> int | None:
        """The number of passes in a step: the larger one of the last two steps; None before the first one.

        The last group of an epoch is often shorter, but two groups in a row are not.
        """
        return max(self._passes, default=None)

    def discarded(self, layer: str) -> int:
        """Return how many passes the loop usually discards before those of a step, such as passes of an attack."""
        return min(self._discarded[layer]) if layer in self._discarded else 0
