"""Devices with fixed, evenly spaced speeds."""

from typing import Literal

import numpy as np

from salf.devices.cohort import Cohort
from salf.devices.model import Devices
from salf.devices.workload import CompletionTimes, Workload
from salf.values import Floats, Positive, validated


@validated
class GradedSpeeds(Devices):
    """Permanently slow devices, from one that never answers to one that is just fast enough.

    Of U clients, client u = 0, 1, … has u/(U − 1) of the speed at which the workload takes `seconds`; all layers take
    equal times. A layer counts as complete in the middle of its time, so that after `seconds` client u has completed
    L · u/(U − 1) of L layers, rounded. A method that waits for all clients gives up client 0 after (U − 1) · `seconds`,
    when all others are done.

    With data divided by label order this is the experiment of docs/experiments.md on persistent stragglers.
    """

    kind: Literal["graded"] = "graded"
    seconds: Positive = 1.0

    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Return the times of the clients of a round; see the class."""
        fastest = max(cohort.population - 1, 1)
        speed = (cohort.clients if cohort.population > 1 else cohort.clients + 1) / fastest
        done = workload.shares[::-1].cumsum()[::-1]
        place = np.arange(workload.local_steps)[:, None] * done[0] + done - workload.shares / 2
        whole = workload.local_steps * workload.costs.num_layers
        with np.errstate(divide="ignore"):
            ready = cohort.computing(self.seconds * place / (whole * speed[:, None, None]))
        return CompletionTimes(ready, ready, ready[:, -1].max(axis=1), give_up_seconds=self.seconds * fastest)

    def typical_seconds(self, workload: Workload) -> float:
        """Return `seconds`."""
        return self.seconds

    def reach(self, workload: Workload, cohort: Cohort, deadline_seconds: float) -> Floats | None:
        """Return the chances, which are 0 or 1."""
        return np.asarray(self.times(workload, cohort).ready[:, 0] <= deadline_seconds, dtype=np.float64)
