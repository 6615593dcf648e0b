"""How long the parts of a training step have taken, to say whether the next one will still fit."""

import math
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

_REMEMBERED = 16
_DEVIATIONS = 3.0
# By how much a prediction from a single measurement is lowered each time it stops a pass; less the more are known.
_EASE = 0.05
# How many measurements one attempt counts for that easing has made in vain.
_CAUTION = 5
# Where whole blocks come to nothing, easing becomes faster each time: after 50 of them half of a prediction is left.
_HASTE = 1 / 1800
# The share of blocks that may be late, and the most of a block's time that is held in reserve for it.
_LATE = 0.04
_LARGEST_RESERVE = 0.2
# What a late block adds to a reserve, relative to its time: more for hoping blocks, which trust the best that was ever
# measured and so err the more.
_RATE = 0.02
_RATE_OF_HOPE = 0.05


class Estimate:
    """A duration measured again and again: `upper` is seldom exceeded, `lower` seldom undercut.

    `upper` is the median of the last values plus three median deviations, which a rare hiccup does not move; `lower` is
    the least of them. Before the first value both are 0, which foresees nothing.

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
        self._outdated = False  # whether something was measured since both were predicted
        self._denials = 0

    @property
    def upper(self) -> float:
        """A duration that is seldom exceeded."""
        self._predict()
        return self._upper

    @property
    def lower(self) -> float:
        """A duration that is seldom undercut."""
        self._predict()
        return self._lower

    def add(self, value: float) -> None:
        """Record one measurement; if it confirms that easing was right, forget the longer ones."""
        if self._eased and value <= self._upper:
            self._values = deque((known for known in self._values if known <= self._upper), maxlen=_REMEMBERED)
        self._values.append(value)
        self._denials //= 2
        self._eased, self._outdated = 0, True

    def ease(self, *, in_vain: bool = False) -> None:
        """Lower both a little, because they kept something from being tried and so from being measured again.

        More and more so where a whole block was `in_vain` for it: a device that was slow for a while is soon tried.
        """
        if self._values:
            self._predict()
            self._eased += 1
            less = _EASE / (len(self._values) + _CAUTION * self._denials)
            less = 1 - (max(less, _HASTE * self._eased) if in_vain else less)
            self._upper *= max(0.0, less)
            self._lower *= max(0.0, less)

    def deny(self, elapsed: float) -> None:
        """Count `elapsed`, which was not enough, as a measurement of twice that, and ease more slowly from now on."""
        if self._values:
            self._denials += 1
            self._values.append(2 * elapsed)
            self._eased, self._outdated = 0, True

    def _predict(self) -> None:
        """Predict both from what was measured: only when asked, since far from a deadline nobody asks."""
        if self._outdated:
            middle = median(self._values)
            self._upper = middle + _DEVIATIONS * median(abs(known - middle) for known in self._values)
            self._lower = min(self._values)
            self._outdated = False


class EstimateBySize:
    """Durations of work on so many bytes, for sizes that recur.

    A size never seen is expected to take as long as the next larger one that was, or else in proportion to the largest.

    >>> estimate = EstimateBySize()
    >>> estimate.add(100, 2.0)
    >>> estimate.upper(100), estimate.upper(50), estimate.upper(200)
    (2.0, 2.0, 4.0)
    """

    def __init__(self) -> None:
        self._estimates: dict[int, Estimate] = {}

    def add(self, size: int, seconds: float) -> None:
        """Record one measurement of work on `size` bytes."""
        if size not in self._estimates:
            self._estimates[size] = Estimate()
        self._estimates[size].add(seconds)

    def upper(self, size: int) -> float:
        """Return a duration that is seldom exceeded; 0 before the first measurement."""
        if not self._estimates or not size:
            return 0.0
        nearest = self._nearest(size)
        return self._estimates[nearest].upper * max(1.0, size / nearest)

    def lower(self, size: int) -> float:
        """Return a duration that is seldom undercut; 0 before the first measurement."""
        return self._estimates[self._nearest(size)].lower if self._estimates and size else 0.0

    def ease(self, size: int) -> None:
        """Lower the expectation for `size` a little; see `Estimate.ease`."""
        if self._estimates and size:
            self._estimates[self._nearest(size)].ease()

    def _nearest(self, size: int) -> int:
        return min((known for known in self._estimates if known >= size), default=max(self._estimates))


@dataclass
class Reserve:
    """Seconds by which blocks end earlier than forecasts alone would have them end.

    However the forecasts err, the share of late blocks tends to 4 % or less, unless a fifth of a block's time is not
    enough for that: each late one adds `rate` of its time to the reserve, and each in time takes a 24th of that back
    (adaptive conformal inference; Gibbs and Candès, 2021, arXiv 2106.00170, equation 2, with the reserve in place of
    the level). A block that the reserve makes leave at once is in time, too.

    >>> reserve = Reserve(rate=0.02)
    >>> reserve.judge(late=True, block_seconds=10.0)
    >>> round(reserve.of(10.0), 3), round(reserve.of(0.5), 3)
    (0.192, 0.1)
    """

    rate: float
    seconds: float = 0.0

    def of(self, block_seconds: float) -> float:
        """Return what to hold in reserve in a block: not much of a short one, whatever long ones have taught."""
        return min(self.seconds, _LARGEST_RESERVE * block_seconds)

    def judge(self, *, late: bool, block_seconds: float) -> None:
        """Adapt to whether a block that was given `block_seconds` ended late for trusting a forecast."""
        # More than one late block beyond what is ever used would only take long to go again.
        most = max(self.seconds, (_LARGEST_RESERVE + self.rate) * block_seconds)
        self.seconds = min(most, max(0.0, self.seconds + self.rate * block_seconds * (late - _LATE)))


@dataclass
class Pace:
    """What earlier steps on one model have taught: durations in seconds, and how often each gradient is accumulated.

    `layer` maps a layer to the time from the completion before it (for the first one, from the start of the forward
    pass) to its own; `order` is the longest order of completions seen. `step` is the time of an optimizer step, `keep`
    that of copying the weights before they change, `leave` that of leaving the loop. `reserve` is for blocks that have
    something to lose, `luck` for those that hope for their first layer, which err more. `passes` maps a parameter to
    the number of backward passes that reach it per optimizer step, and is None until a whole step was seen. `spare` is
    memory for a copy of the weights, which each block needs and which is costly to allocate.
    """

    layer: dict[str, Estimate] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    step: EstimateBySize = field(default_factory=EstimateBySize)
    keep: EstimateBySize = field(default_factory=EstimateBySize)
    leave: Estimate = field(default_factory=Estimate)
    passes: Mapping[str, int] | None = None
    reserve: Reserve = field(default_factory=lambda: Reserve(_RATE))
    luck: Reserve = field(default_factory=lambda: Reserve(_RATE_OF_HOPE))
    spare: dict[str, Tensor] = field(default_factory=dict)
    _next: dict[str | None, str] = field(default_factory=dict)

    def record(self, layer: str, seconds: float) -> None:
        """Record the time a layer took."""
        if layer not in self.layer:
            self.layer[layer] = Estimate()
        self.layer[layer].add(seconds)

    def learn_order(self, completed: Sequence[str]) -> None:
        """Take the order of a backward pass, which may have been interrupted, for that of the next ones."""
        order = tuple(dict.fromkeys(completed))
        if len(order) >= len(self.order) and order != self.order:
            self.order = order
            self._next = dict(zip((None, *order), order, strict=False))

    def foresee(self, layer: str | None, stepped: int, copied: int) -> float:
        """Foresee the seconds until `layer` is complete, `stepped` bytes stepped, `copied` kept, and the loop left."""
        tail = self.leave.upper + self.step.upper(stepped) + self.keep.upper(copied)
        return tail + (self.layer[layer].upper if layer in self.layer else 0.0)

    def hope(self, layer: str | None, stepped: int, copied: int) -> float:
        """Foresee what `foresee` does, should everything go as well as it seldom does."""
        tail = self.leave.lower + self.step.lower(stepped) + self.keep.lower(copied)
        return tail + (self.layer[layer].lower if layer in self.layer else 0.0)

    def ease(self, layer: str | None, stepped: int, copied: int, *, in_vain: bool = False) -> None:
        """Note that a forecast for these arguments has kept a layer from being tried, `in_vain` a block's first."""
        self.leave.ease()
        self.step.ease(stepped)
        self.keep.ease(copied)
        if layer in self.layer:
            self.layer[layer].ease(in_vain=in_vain)

    def deny(self, layer: str | None, elapsed: float) -> None:
        """Note that `elapsed` seconds were not enough for a layer."""
        if layer in self.layer:
            self.layer[layer].deny(elapsed)

    def following(self, layer: str | None) -> str | None:
        """Name the layer that backpropagation completes after `layer` (None: the first of all), if that was seen."""
        return self._next.get(layer)

    def whole_step(self) -> float:
        """Foresee the seconds of a whole step; infinite where it is not known, so that nothing is taken for granted."""
        if not self.order or any(layer not in self.layer for layer in self.order):
            return math.inf
        return sum(self.layer[layer].upper for layer in self.order)


class Stopwatch:
    """A clock with a limit, for work that may run on an accelerator.

    `now` first waits until the device has done what was queued, so that the time is the device's, not the queue's. The
    limit is `seconds` after the start.
    """

    def __init__(self, clock: Callable[[], float], seconds: float, device: torch.device) -> None:
        self.clock = clock
        self.is_cheap = device.type == "cpu"
        self.started = 0.0
        self.limit = math.inf
        self.seconds = seconds
        self._device = device

    def start(self) -> None:
        """Set `started` to now and `limit` to the end of the time."""
        self.started = self.now()
        self.limit = self.started + self.seconds

    def now(self) -> float:
        """Return the time at which the device has finished everything it was given."""
        if not self.is_cheap:
            torch.accelerator.synchronize(self._device)
        return self.clock()


_paces: weakref.WeakKeyDictionary[nn.Module, tuple[Callable[[], float], Pace]] = weakref.WeakKeyDictionary()


def pace_of(model: nn.Module, clock: Callable[[], float]) -> Pace:
    """Return what earlier blocks on this very model, timed by this clock, have taught.

    It is kept beside the model, not on it, and goes when the model goes.
    """
    known = _paces.get(model)
    if known is None or known[0] != clock:
        known = (clock, Pace())
        _paces[model] = known
    return known[1]
