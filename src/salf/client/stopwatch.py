"""The clock of a block, which on an accelerator measures the time of the device."""

import math
from collections.abc import Callable

import torch


class Stopwatch:
    """A clock with a limit, for work that may run on an accelerator.

    Attributes:
        clock: Returns seconds; read directly, it does not wait for the device.
        is_cheap: Whether `now` returns at once, because the device is the CPU.
        started: The clock's reading at the start.
        limit: The clock's reading at the deadline; infinite before the start.
        seconds: The time from the start to the limit.
    """

    def __init__(self, clock: Callable[[], float], seconds: float, device: torch.device) -> None:
        self.clock = clock
        self.is_cheap = device.type == "cpu"
        self.started = 0.0
        self.limit = math.inf
        self.seconds = seconds
        self._device = device

    def start(self) -> None:
        """Set `started` to now and `limit` to the deadline."""
        self.started = self.now()
        self.limit = self.started + self.seconds

    def now(self) -> float:
        """Wait until the device has finished all queued work, then return the time."""
        if not self.is_cheap:
            torch.accelerator.synchronize(self._device)
        return self.clock()
