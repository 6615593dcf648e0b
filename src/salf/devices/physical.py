"""Devices with a speed, a link and an on-off switch."""

import math
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from salf import theory
from salf.devices.cohort import Cohort, stragglers_among
from salf.devices.workload import CompletionTimes, Devices, Workload
from salf.values import Floats, Fraction, NonNegative, Positive, validated

_P90 = 1.2815515655446004  # the 90th percentile of the standard normal distribution


@validated
class Physical(Devices):
    """Devices with a speed, a link and an on-off switch.

    In a round, a client waits until it is on, receives the model, computes, and sends the finished layers. Each local
    step is one forward pass and the backward pass layer by layer. A step takes the median device `step_seconds`,
    divided among the forward pass and the layers by their floating-point operations. Speeds are log-normal over clients
    with deviation `speed_sigma` of the logarithm (0.8: p90/p10 ≈ 7; 1.0: ≈ 12.5). A client keeps its speed, unless
    `drawn="round"`; its rounds vary by a log-normal factor with coefficient of variation `jitter`. Links are log-normal
    around `bandwidth_bits_per_second`, with `bandwidth_ratio` = p90/p10, the same in both directions. The share
    `stragglers` of the clients is slower by the factor `slowdown` in addition.

    `availability="on-off"` switches devices on for exponential times of median `on_seconds` and off for exponential
    times of median `off_seconds`, drawn in each round. A device that goes off resumes where it stopped, and stays on
    after 16 spells. With the medians measured on phones, a device is on for 22 % of the time. The same measurement says
    that the median phone is on for 5.5 % of the time; `off_seconds` = 2371 gives this.

    Defaults are published measurements: the median of three phone classes on a small CNN (588 ms for a batch), and
    mobile links (42 Mb/s).
    """

    kind: Literal["physical"] = "physical"
    step_seconds: Positive = 0.588
    speed_sigma: NonNegative = 0.8
    drawn: Literal["once", "round"] = "once"
    jitter: NonNegative = 0.1
    bandwidth_bits_per_second: Positive = 42e6
    bandwidth_ratio: Annotated[float, Field(ge=1)] = 1.3
    stragglers: Fraction = 0.0
    slowdown: Annotated[float, Field(ge=1)] = 5.0
    availability: Literal["always", "on-off"] = "always"
    on_seconds: Positive = 138.0
    off_seconds: Positive = 476.0

    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Draw the times of the clients of a round; see the class."""
        own_sigma = self._jitter_sigma
        slow = self._slowness(cohort) * np.exp(own_sigma * cohort.normals("jitter") - own_sigma**2 / 2)
        link = self._links(cohort)
        received = self._download_bytes(workload) / link[:, None, None]
        ready = received + cohort.computing(slow[:, None, None] * self._computing(workload))
        forward = self._in_steps(workload, np.array([workload.costs.forward]))
        forwarded = received + cohort.computing(slow[:, None, None] * forward)
        sent = ready + _sent_bytes(workload) / link[:, None, None]
        if self.availability == "on-off":
            ready, sent = self._with_off_times(ready, cohort), self._with_off_times(sent, cohort)
            received, forwarded = self._with_off_times(received, cohort), self._with_off_times(forwarded, cohort)
        return CompletionTimes(ready, sent, sent[:, -1, 0], received=received[:, 0, 0], forwarded=forwarded[:, :, 0])

    def reach(self, workload: Workload, cohort: Cohort, deadline_seconds: float) -> Floats | None:
        """Return the chances: log-normal times, of a client's own rounds or of one among all. None for "on-off"."""
        if self.availability == "on-off":
            return None
        computing = self._computing(workload)[0] * math.exp(-(self._jitter_sigma**2) / 2)
        transfer = (self._download_bytes(workload) + _sent_bytes(workload)[0]) / self._bytes_per_second
        chances = partial(theory.log_normal_reach, deadline_seconds=deadline_seconds)
        if self.drawn == "once":
            own_computing = cohort.computing(self._slowness(cohort)[:, None] * computing)
            own_transfer = self._bytes_per_second / self._links(cohort)[:, None] * transfer
            jitter = {"speed_sigma": self._jitter_sigma, "link_sigma": 0.0}
            return chances(computing_seconds=own_computing, transfer_seconds=own_transfer, **jitter)
        spread = {"speed_sigma": math.hypot(self.speed_sigma, self._jitter_sigma), "link_sigma": self._link_sigma}
        usual, slowed = (
            chances(computing_seconds=cohort.computing(seconds), transfer_seconds=transfer, **spread)
            for seconds in (np.tile(factor * computing, (len(cohort.clients), 1)) for factor in (1.0, self.slowdown))
        )
        return np.asarray((1 - self.stragglers) * usual + self.stragglers * slowed, dtype=np.float64)

    def typical_seconds(self, workload: Workload) -> float:
        """Return the time of the workload on the median device with the median link, switched on."""
        transfer = (self._download_bytes(workload) + sum(workload.costs.layer_bytes)) / self._bytes_per_second
        return transfer + float(self._computing(workload).max())

    def _slowness(self, cohort: Cohort) -> Floats:
        """Return by which factor each client computes slower than the median one, but for its jitter."""
        lasting = self.drawn == "once"
        slow = np.exp(self.speed_sigma * cohort.normals("speed", lasting=lasting))
        if self.stragglers:
            slow = np.where(stragglers_among(cohort, self.stragglers, lasting=lasting), slow * self.slowdown, slow)
        return np.asarray(slow, dtype=np.float64)

    def _links(self, cohort: Cohort) -> Floats:
        """Return each client's bytes per second."""
        normals = cohort.normals("bandwidth", lasting=self.drawn == "once")
        return np.asarray(self._bytes_per_second * np.exp(self._link_sigma * normals), dtype=np.float64)

    @property
    def _jitter_sigma(self) -> float:
        return math.sqrt(math.log1p(self.jitter**2))

    @property
    def _link_sigma(self) -> float:
        return math.log(self.bandwidth_ratio) / (2 * _P90)

    @property
    def _bytes_per_second(self) -> float:
        return self.bandwidth_bits_per_second / 8

    def _download_bytes(self, workload: Workload) -> int:
        return sum(workload.costs.layer_bytes)

    def _computing(self, workload: Workload) -> Floats:
        """Return when the median device completes each layer of each step, shape (local steps, layers)."""
        return self._in_steps(workload, workload.costs.forward + workload.backward[::-1].cumsum()[::-1])

    def _in_steps(self, workload: Workload, done: Floats) -> Floats:
        """Return when the median device has done that many operations of each step, shape (local steps, operations)."""
        whole = workload.whole or workload.costs
        all_layers = np.asarray(whole.backward)[::-1].cumsum()[-1]
        step = (workload.costs.forward + workload.backward[::-1].cumsum()[-1]) / (whole.forward + all_layers)
        share = done / (whole.forward + all_layers)
        steps = np.arange(workload.local_steps)[:, None] * step + share
        return np.asarray(self.step_seconds * steps, dtype=np.float64)

    def _with_off_times(self, busy: Floats, cohort: Cohort) -> Floats:
        """Stretch times of being busy by the times for which the device is off."""
        spells = 16  # more than a device goes through in any sensible round; after that it stays on
        draws = -np.log(cohort.uniforms("availability", 2 * spells + 1)) / math.log(2)
        on, off = draws[:, :spells] * self.on_seconds, draws[:, spells:-1] * self.off_seconds
        starts_off = np.exp(-draws[:, -1] * math.log(2)) < self.off_seconds / (self.on_seconds + self.off_seconds)
        off[:, 0] = np.where(starts_off, off[:, 0], 0.0)  # the wait before the first spell of being on
        begins = np.concatenate([np.zeros((len(on), 1)), on.cumsum(axis=1)[:, :-1]], axis=1)
        stretched = busy.copy()
        for spell in range(spells):
            stretched += np.where(busy > begins[:, spell, None, None], off[:, spell, None, None], 0.0)
        return stretched


def _sent_bytes(workload: Workload) -> Floats:
    """Return what is sent by a client that stops at each layer of each step, shape (local steps, layers)."""
    sizes = workload.upload_bytes
    sent = np.full((workload.local_steps, len(sizes)), sizes.sum())
    sent[0] = sizes[::-1].cumsum()[::-1]
    return sent
