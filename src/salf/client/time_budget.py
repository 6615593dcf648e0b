"""The time of one block, and the moment to leave its loop."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from salf.client.forecast import TimeForecast
from salf.client.work import BlockRecord


@dataclass
class Stopwatch:
    """A clock with a limit, for work that may run on an accelerator.

    Attributes:
        clock: Returns seconds; read directly, it does not wait for the device.
        seconds: The time from the start to the limit.
        device: Where the work runs.
        started: The clock's reading at the start.
        limit: The clock's reading at the deadline; infinite before the start.
        is_cheap: Whether `now` returns at once, because the device is the CPU.
    """

    clock: Callable[[], float]
    seconds: float
    device: torch.device
    started: float = 0.0
    limit: float = math.inf

    def __post_init__(self) -> None:
        self.move(self.device)

    def move(self, device: torch.device) -> None:
        """Follow the work to another device."""
        self.device, self.is_cheap = device, device.type == "cpu"

    def start(self) -> None:
        """Set `started` to now and `limit` to the deadline."""
        self.started = self.now()
        self.limit = self.started + self.seconds

    def now(self) -> float:
        """Wait until the device has finished all queued work, then return the time."""
        if not self.is_cheap:
            torch.accelerator.synchronize(self.device)
        return self.clock()


class TimeUp(BaseException):
    """Leaves the user's loop; `except Exception` does not catch it."""

    def __init__(self, budget: "TimeBudget", noticed: float) -> None:
        super().__init__("the deadline of a salf block")
        self.budget = budget
        self.noticed = noticed


@dataclass
class TimeBudget:
    """Decides when a block must leave its loop.

    The loop must end at the limit, and already before a layer that cannot be completed, stepped and uploaded by then. A
    block with finished work trusts the upper forecasts. A block without finished work keeps trying as long as the lower
    forecasts allow, because leaving early gains nothing.

    Attributes:
        stopwatch: The block's clock and limit.
        forecast: What earlier blocks on this model measured.
        record: The block's steps so far.
        sizes: Bytes of the parameters of each layer that the optimizer changes, by name.
        buffer_bytes: Bytes of these layers' buffers.
        upload_bytes_per_second: Rate at which the update is sent; infinite to reserve no time.
        careful_from: Before this time, the limit is too far away for a forecast to matter.
        is_precise: Whether times are measured now. On an accelerator, reading the clock waits for the device, so this
            is false while the limit is far away.
    """

    stopwatch: Stopwatch
    forecast: TimeForecast
    record: BlockRecord
    sizes: Mapping[str, int]
    buffer_bytes: int
    upload_bytes_per_second: float
    careful_from: float = -math.inf
    is_precise: bool = True

    def __post_init__(self) -> None:
        self._all_bytes = sum(self.sizes.values())
        self._reserve = self.forecast.reserve.within(self.stopwatch.seconds)
        self._optimistic_reserve = self.forecast.optimistic_reserve.within(self.stopwatch.seconds)

    def now_if_precise(self) -> float:
        """Return the time, or 0 while times are not measured."""
        return self.stopwatch.now() if self.is_precise else 0.0

    def begin_pass(self, now: float) -> None:
        """Adapt `careful_from` and `is_precise` when a forward pass begins."""
        if now >= self.careful_from:
            whole = self._all_bytes
            last_step = self._reserve + self.forecast.upper(None, whole, whole) + self._upload_seconds(whole)
            margin = 2 * (self.forecast.whole_pass_seconds() or math.inf) + last_step
            self.careful_from = self.stopwatch.limit - margin
        self.is_precise = self.stopwatch.is_cheap or now >= self.careful_from

    def leave_if_up(self, now: float) -> None:
        """Leave the loop if the limit is reached."""
        if now >= self.stopwatch.limit:
            raise TimeUp(self, now)

    def leave_unless_layer_fits(
        self, layer: str | None, now: float, since: float | None, done: int, *, whole_pass: bool = False
    ) -> None:
        """Leave the loop if the limit is reached, or would be before another layer is finished.

        Args:
            layer: The next layer to complete; None if it is unknown.
            now: The time.
            since: The time of the last completion; None for now.
            done: Bytes of the layers that the step in progress has completed.
            whole_pass: Whether the pass that begins cannot be interrupted, so that all its layers must fit.
        """
        since = now if since is None else since
        rest = self.forecast.whole_pass_seconds() - self.forecast.layer_seconds(layer) if whole_pass else 0.0
        if now >= self.stopwatch.limit:
            self.forecast.refute(layer, now - since)
            raise TimeUp(self, now)
        stepped = self._all_bytes if whole_pass else done if layer is None else done + self.sizes.get(layer, 0)
        copied = 0 if self.record.steps else stepped
        is_empty = not (self.record.steps or done)
        if is_empty:
            takes = self._optimistic_reserve + self.forecast.lower(layer, stepped, copied)
        else:
            takes = self._reserve + self.forecast.upper(layer, stepped, copied)
        if since + takes + rest + self._upload_seconds(stepped) > self.stopwatch.limit:
            self.forecast.ease(layer, stepped, copied, block_was_empty=is_empty)
            raise TimeUp(self, now)

    def learn_from_leaving(self, noticed: float, left: float, stepping: float, done: int) -> None:
        """Learn how long leaving took, and whether the block met its deadline.

        Args:
            noticed: The time at which the block decided to leave.
            left: The time at which it ended.
            stepping: The seconds in between that the last optimizer step took.
            done: Bytes of the layers that the last step changed.
        """
        self.forecast.leave.add(left - noticed - stepping)
        limit = self.stopwatch.limit - self._upload_seconds(done)
        was_optimistic = not self.record.steps and self.record.depth <= 1
        reserve = self.forecast.optimistic_reserve if was_optimistic else self.forecast.reserve
        reserve.update(missed=left > limit, block_seconds=self.stopwatch.seconds)

    def _upload_seconds(self, stepped: int) -> float:
        sent = self._all_bytes if self.record.steps else stepped
        return (sent + self.buffer_bytes) / self.upload_bytes_per_second
