"""What earlier steps on one model tell about the next: how long layers, steps and copies take."""

import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from torch import Tensor, nn

from salf.client.loop_pattern import LoopPattern

_REMEMBERED = 16
_DEVIATIONS = 3.0
# By how much one `ease` lowers an estimate from a single measurement; less with more measurements.
_EASE = 0.05
# How many measurements one refuted attempt counts for.
_CAUTION = 5
# While blocks stay empty, easing grows by this much each time: after 50 empty blocks half of an estimate is left.
_HASTE = 1 / 1800
# The share of blocks that may miss the deadline, and the largest share of a block's time that is held in reserve.
_MAY_MISS = 0.04
_LARGEST_RESERVE = 0.2


class Estimate:
    """A range for a duration: `upper` is seldom exceeded, `lower` seldom undercut.

    `upper` is the median of the last 16 measurements plus three median absolute deviations, so one outlier does not
    move it. `lower` is the smallest measurement. Both are 0 before the first one. All durations are in seconds.

    >>> estimate = Estimate()
    >>> for seconds in (2.0, 2.0, 3.0, 90.0, 1.0):
    ...     estimate.add(seconds)
    >>> estimate.lower, estimate.upper
    (1.0, 5.0)
    """

    def __init__(self) -> None:
        self._upper = self._lower = 0.0
        self._values: deque[float] = deque(maxlen=_REMEMBERED)
        self._eased = 0  # how often since the last measurement
        self._outdated = False  # whether there is a measurement that upper and lower do not reflect
        self._refuted = 0

    @property
    def upper(self) -> float:
        """A duration that is seldom exceeded."""
        self._refresh()
        return self._upper

    @property
    def lower(self) -> float:
        """A duration that is seldom undercut."""
        self._refresh()
        return self._lower

    def add(self, seconds: float) -> None:
        """Record a measurement; if it confirms an eased estimate, forget the longer measurements."""
        if self._eased and seconds <= self._upper:
            self._values = deque((known for known in self._values if known <= self._upper), maxlen=_REMEMBERED)
        self._values.append(seconds)
        self._refuted //= 2
        self._eased, self._outdated = 0, True

    def ease(self, *, block_was_empty: bool = False) -> None:
        """Lower the estimate a little, because it prevented an attempt and thereby a new measurement.

        If the whole block was empty for this reason, each further call lowers it more. A device that was slow for a
        while is therefore soon tried again.
        """
        if self._values:
            self._refresh()
            self._eased += 1
            less = _EASE / (len(self._values) + _CAUTION * self._refuted)
            factor = max(0.0, 1 - (max(less, _HASTE * self._eased) if block_was_empty else less))
            self._upper *= factor
            self._lower *= factor

    def refute(self, elapsed: float) -> None:
        """Count `elapsed` seconds, which were not enough, as a measurement of twice that; ease more slowly later."""
        if self._values:
            self._refuted += 1
            self._values.append(2 * elapsed)
            self._eased, self._outdated = 0, True

    def _refresh(self) -> None:
        """Compute both bounds on demand: far from a deadline no caller reads them."""
        if self._outdated:
            middle = median(self._values)
            self._upper = middle + _DEVIATIONS * median(abs(known - middle) for known in self._values)
            self._lower = min(self._values)
            self._outdated = False


class EstimateBySize:
    """Durations of work on a number of bytes, for sizes that recur.

    A size takes as long as the fastest of those that are not smaller. Beyond the largest, time grows in proportion.

    >>> estimate = EstimateBySize()
    >>> estimate.add(100, 2.0)
    >>> estimate.upper(100), estimate.upper(50), estimate.upper(200)
    (2.0, 2.0, 4.0)
    """

    def __init__(self) -> None:
        self._estimates: defaultdict[int, Estimate] = defaultdict(Estimate)

    def add(self, size: int, seconds: float) -> None:
        """Record a measurement of work on `size` bytes."""
        self._estimates[size].add(seconds)

    def upper(self, size: int) -> float:
        """Return the seconds that are seldom exceeded; 0 before the first measurement."""
        if not self._estimates or not size:
            return 0.0
        nearest = self._nearest(size)
        return self._estimates[nearest].upper * max(1.0, size / nearest)

    def lower(self, size: int) -> float:
        """Return the seconds that are seldom undercut; 0 before the first measurement."""
        return self._estimates[self._nearest(size)].lower if self._estimates and size else 0.0

    def ease(self, size: int) -> None:
        """Lower the estimate for `size` bytes a little; see `Estimate.ease`."""
        if self._estimates and size:
            self._estimates[self._nearest(size)].ease()

    def _nearest(self, size: int) -> int:
        # Less work takes no longer than more, whatever one measurement of it says.
        larger = (known for known in self._estimates if known >= size)
        return min(larger, key=lambda known: (self._estimates[known].upper, known), default=max(self._estimates))


@dataclass
class Reserve:
    """Seconds by which blocks end earlier than the forecast alone demands.

    However wrong forecasts are, the share of blocks that miss the deadline tends to 4 % or less, unless that needs more
    than a fifth of a block's time. Each miss adds `0.96 * rate` of the block's time to the reserve; each block in time
    takes a 24th of that back. A block that leaves at once because of the reserve counts as in time. Source: adaptive
    conformal inference, Gibbs and Candès, 2021, arXiv 2106.00170, equation 2, with the reserve in place of the level.

    Attributes:
        rate: Step size, as a share of the block's time.
        seconds: The reserve that past blocks have built up.

    >>> reserve = Reserve(rate=0.02)
    >>> reserve.update(missed=True, block_seconds=10.0)
    >>> round(reserve.within(10.0), 3), round(reserve.within(0.5), 3)
    (0.192, 0.1)
    """

    rate: float
    seconds: float = 0.0

    def within(self, block_seconds: float) -> float:
        """Return the reserve for a block: at most a fifth of its time, whatever longer blocks have built up."""
        return min(self.seconds, _LARGEST_RESERVE * block_seconds)

    def update(self, *, missed: bool, block_seconds: float) -> None:
        """Adapt to a block of `block_seconds` that trusted a forecast and met or missed its deadline."""
        # A larger reserve is never used, and would only take long to shrink.
        most = max(self.seconds, (_LARGEST_RESERVE + self.rate) * block_seconds)
        self.seconds = min(most, max(0.0, self.seconds + self.rate * block_seconds * (missed - _MAY_MISS)))


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
        pattern: How the loop uses its backward passes.
        reserve: For blocks that have finished a layer.
        optimistic_reserve: For blocks that try their first layer.
        spare_copies: Memory for a copy of the weights. Every block needs it, and it is expensive to allocate.
    """

    layers: dict[str, Estimate] = field(default_factory=lambda: defaultdict(Estimate))
    order: tuple[str, ...] = ()
    step: EstimateBySize = field(default_factory=EstimateBySize)
    copy: EstimateBySize = field(default_factory=EstimateBySize)
    leave: Estimate = field(default_factory=Estimate)
    pattern: LoopPattern = field(default_factory=LoopPattern)
    reserve: Reserve = field(default_factory=lambda: Reserve(_RATE))
    optimistic_reserve: Reserve = field(default_factory=lambda: Reserve(_OPTIMISTIC_RATE))
    spare_copies: dict[str, Tensor] = field(default_factory=dict)
    _next: dict[str | None, str] = field(default_factory=dict)

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
        return tail + self.layer_seconds(layer)

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

    def layer_seconds(self, layer: str | None) -> float:
        """Return the seconds, seldom exceeded, from the layer before this one to its completion; 0 if unknown."""
        return self.layers[layer].upper if layer in self.layers else 0.0

    def whole_pass_seconds(self) -> float:
        """Return the seconds of a forward and backward pass, seldom exceeded; 0 while a layer's time is unknown."""
        if any(layer not in self.layers for layer in self.order):
            return 0.0
        return sum(map(self.layer_seconds, self.order))


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
