"""What earlier steps on one model tell about the next: how long layers, steps and copies take."""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from salf.client.estimates import Estimate, EstimateBySize, Reserve

# How much a missed deadline adds to a reserve, relative to the block's time. Blocks that try their first layer trust
# the best measurement, so their forecasts err more.
_RATE = 0.02
_OPTIMISTIC_RATE = 0.05


@dataclass
class TimeForecast:
    """Durations that earlier blocks on one model measured, in seconds, and what else they learned.

    Attributes:
        layers: For each layer, the time from the completion of the layer before it (for the first one, from the start
            of the forward pass) to its own completion.
        order: The longest order in which layers were completed.
        step: The time of an optimizer step, by the bytes it changes.
        copy: The time to copy weights before they change, by bytes.
        leave: The time to leave the loop.
        passes: How many backward passes reach each parameter per optimizer step; None before the first whole step.
        reserve: For blocks that have finished a layer.
        optimistic_reserve: For blocks that try their first layer.
        spare_copies: Memory for a copy of the weights. Every block needs it, and it is expensive to allocate.
    """

    layers: dict[str, Estimate] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    step: EstimateBySize = field(default_factory=EstimateBySize)
    copy: EstimateBySize = field(default_factory=EstimateBySize)
    leave: Estimate = field(default_factory=Estimate)
    passes: Mapping[str, int] | None = None
    reserve: Reserve = field(default_factory=lambda: Reserve(_RATE))
    optimistic_reserve: Reserve = field(default_factory=lambda: Reserve(_OPTIMISTIC_RATE))
    spare_copies: dict[str, Tensor] = field(default_factory=dict)
    _next: dict[str | None, str] = field(default_factory=dict)

    def record_layer(self, layer: str, seconds: float) -> None:
        """Record how long a layer took."""
        if layer not in self.layers:
            self.layers[layer] = Estimate()
        self.layers[layer].add(seconds)

    def learn_order(self, completed: Sequence[str]) -> None:
        """Learn the order of layers from a backward pass, whole or interrupted, unless a longer one is known."""
        order = tuple(dict.fromkeys(completed))
        if len(order) >= len(self.order) and order != self.order:
            self.order = order
            self._next = dict(zip((None, *order), order, strict=False))

    def next_layer(self, layer: str | None) -> str | None:
        """Return the layer that backpropagation completes after `layer` (None: the first), or None if unknown."""
        return self._next.get(layer)

    def upper(self, layer: str | None, stepped: int, copied: int) -> float:
        """Return the seconds, seldom exceeded, to complete one more layer, step, and leave the loop.

        Args:
            layer: The layer to complete; None if it is unknown, which counts as no time.
            stepped: Bytes that the optimizer step changes.
            copied: Bytes that are copied before the step.
        """
        tail = self.leave.upper + self.step.upper(stepped) + self.copy.upper(copied)
        return tail + (self.layers[layer].upper if layer in self.layers else 0.0)

    def lower(self, layer: str | None, stepped: int, copied: int) -> float:
        """Return the seconds, seldom undercut, for what `upper` describes."""
        tail = self.leave.lower + self.step.lower(stepped) + self.copy.lower(copied)
        return tail + (self.layers[layer].lower if layer in self.layers else 0.0)

    def ease(self, layer: str | None, stepped: int, copied: int, *, block_was_empty: bool = False) -> None:
        """Lower the forecasts for these arguments, because they prevented an attempt; see `Estimate.ease`."""
        self.leave.ease()
        self.step.ease(stepped)
        self.copy.ease(copied)
        if layer in self.layers:
            self.layers[layer].ease(block_was_empty=block_was_empty)

    def refute(self, layer: str | None, elapsed: float) -> None:
        """Note that `elapsed` seconds were not enough for a layer."""
        if layer in self.layers:
            self.layers[layer].refute(elapsed)

    def whole_step_seconds(self) -> float:
        """Return the seconds of a whole step, seldom exceeded; infinite while a layer's time is unknown."""
        if not self.order or any(layer not in self.layers for layer in self.order):
            return math.inf
        return sum(self.layers[layer].upper for layer in self.order)


_forecasts: weakref.WeakKeyDictionary[nn.Module, tuple[Callable[[], float], TimeForecast]] = weakref.WeakKeyDictionary()


def forecast_of(model: nn.Module, clock: Callable[[], float]) -> TimeForecast:
    """Return the forecast from earlier blocks on this model, timed by this clock.

    It is stored beside the model, not on it, and is freed with the model.
    """
    known = _forecasts.get(model)
    if known is None or known[0] != clock:
        known = (clock, TimeForecast())
        _forecasts[model] = known
    return known[1]
