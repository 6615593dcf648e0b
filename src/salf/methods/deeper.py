"""Skipping output layers to reach input layers that few clients reach."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from salf.devices import CompletionTimes, Workload
from salf.methods.layerwise import ChosenRule
from salf.methods.method import Scheduling
from salf.methods.schedules import RoundSchedule
from salf.participation import ObservedReach
from salf.values import Fraction, Ints, validated

Bools = npt.NDArray[np.bool_]


@validated
class ReachingDeeper(ChosenRule):
    """SALF in which slow clients skip the training of output layers in every second round, to get nearer to the input.

    To reach a layer, backpropagation needs only the input gradients of the layers behind it, about half of their work.
    In every second round a client that would miss the first layer skips as many output layers as it needs to reach it,
    or to get as near to it as possible. In the other rounds it trains them, so that all layers learn from its data. It
    may skip layers that at least the share `covered` of the round's clients would train anyway. As in `TimelyFL`,
    clients know their speed before the round.
    """

    name: Literal["deeper"] = "deeper"
    covered: Fraction = 0.5

    @property
    def skips_layers(self) -> bool:
        """Whether a client may send a layer without all layers nearer to the output: yes."""
        return True

    def workloads(self, workload: Workload) -> tuple[Workload, ...]:
        """Return the workload that trains all layers, and those that skip the last 1, 2, … and all but the first."""
        return tuple(replace(workload, skipped=skipped) for skipped in range(workload.costs.num_layers))

    def in_round(self, round: int, usual_seconds: float, observed: ObservedReach) -> Scheduling:
        """Return the schedule in which clients at odd or at even places may skip layers."""
        return _AlternatingRound(self, round % 2)


@dataclass(frozen=True)
class _AlternatingRound:
    """A round in which every second client, from the place `first` on, may skip output layers."""

    method: ReachingDeeper
    first: int

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Choose what each client skips, and count every layer that is sent by the deadline."""
        seconds = self.method.deadline_seconds(usual_seconds)
        steps = np.stack([times.steps_by(seconds) for times in options])
        finished = np.stack([times.steps_ready_by(seconds) for times in options])
        layers = steps.shape[2]
        trained = np.arange(layers) < layers - np.arange(len(options))[:, None]  # by option
        given = self._options(steps[0] > 0, (steps > 0) & trained[:, None])
        clients = np.arange(len(given))
        whole = np.stack([times.whole for times in options])[given, clients]
        own = trained[given]
        ends = min(seconds, float(whole.max()))
        return RoundSchedule(steps[given, clients] * own, finished[given, clients] * own, ends, seconds, given)

    def _options(self, ordinary: Bools, sent: Bools) -> Ints:
        """Return each client's option.

        Args:
            ordinary: Which layers each client sends if it skips none, shape (clients, layers).
            sent: Which layers each client sends in each option, shape (options, clients, layers).
        """
        layers = ordinary.shape[1]
        well_covered = (ordinary.mean(axis=0) >= self.method.covered)[::-1]
        most = int(np.logical_and.accumulate(well_covered).sum())  # output layers that may be skipped
        allowed = sent[: most + 1]
        reached = np.where(allowed.any(axis=2), allowed.argmax(axis=2), layers)  # the layer nearest to the input
        may_skip = np.arange(ordinary.shape[0]) % 2 == self.first
        return np.where(may_skip, reached.argmin(axis=0), 0)
