"""Passing through the output layers to get to those that nobody else reaches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from salf.aggregation import AnyRule, Corrected, Rule
from salf.devices import CompletionTimes, Workload
from salf.methods.layerwise import LayerWise
from salf.methods.method import Scheduling
from salf.methods.schedules import RoundSchedule
from salf.participation import ObservedReach
from salf.values import Ints, validated

Bools = npt.NDArray[np.bool_]


@validated
class ReachingDeeper(LayerWise):
    """SALF in which slow clients, every second time, leave the output layers alone to get to those near the input.

    To reach a layer, backpropagation needs only the input gradients of those behind it, about half of their work. In
    every second round a client that would not get to the first layer by the deadline passes through as many output
    layers without training them as lets it get there, or else as near to it as can be; in the other rounds it trains
    them, so that all layers learn from its data. It may pass through the layers that at least the share `covered` of
    the round's clients would train anyway. As in `TimelyFL`, clients know beforehand how fast they will be.
    """

    name: Literal["deeper"] = "deeper"
    rule: AnyRule = Field(default_factory=Corrected)
    covered: Annotated[float, Field(ge=0, le=1)] = 0.5

    @property
    def own_rule(self) -> Rule:
        """The chosen rule."""
        return self.rule

    @property
    def skips_layers(self) -> bool:
        """Clients do."""
        return True

    def workloads(self, workload: Workload) -> tuple[Workload, ...]:
        """Return the job that trains all layers, and those that pass through the last 1, 2, … and all but the first."""
        return tuple(replace(workload, skipped=skipped) for skipped in range(workload.costs.num_layers))

    def in_round(self, round: int, usual_seconds: float, observed: ObservedReach) -> Scheduling:
        """Return the schedule in which the clients at the odd or the even places have their turn."""
        return _Turn(self, round % 2)


@dataclass(frozen=True)
class _Turn:
    """A round in which every second client, from the place `first` on, may pass through output layers."""

    method: ReachingDeeper
    first: int

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Choose for each client what it passes through, and count every layer that is conveyed by the deadline."""
        seconds = self.method.deadline or usual_seconds
        steps = np.stack([times.steps_by(seconds) for times in options])
        finished = np.stack([times.steps_ready_by(seconds) for times in options])
        layers = steps.shape[2]
        trained = np.arange(layers) < layers - np.arange(len(options))[:, None]  # by option
        given = self._given(steps[0] > 0, (steps > 0) & trained[:, None])
        clients = np.arange(len(given))
        whole = np.stack([times.whole for times in options])[given, clients]
        own = trained[given]
        return RoundSchedule(
            steps[given, clients] * own,
            finished[given, clients] * own,
            min(seconds, float(whole.max())),
            seconds,
            given,
        )

    def _given(self, ordinary: Bools, conveyed: Bools) -> Ints:
        """Return each client's option; `conveyed`, shape (options, clients, layers), says what each would bring."""
        layers = ordinary.shape[1]
        well_covered = (ordinary.mean(axis=0) >= self.method.covered)[::-1]
        most = int(np.logical_and.accumulate(well_covered).sum())  # output layers that may be passed through
        allowed = conveyed[: most + 1]
        reached = np.where(allowed.any(axis=2), allowed.argmax(axis=2), layers)  # the layer nearest to the input
        turn = np.arange(ordinary.shape[0]) % 2 == self.first
        return np.where(turn, reached.argmin(axis=0), 0)
