"""TimelyFL: stragglers train the last layers only."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from salf.devices import CompletionTimes, Workload
from salf.methods.method import DeadlineMethod
from salf.methods.schedules import RoundSchedule, largest_workloads_by
from salf.values import validated


@validated
class TimelyFL(DeadlineMethod):
    """TimelyFL (Zhang et al., arXiv 2304.06947): clients short of time freeze the layers nearest to the input.

    Before training, each client gets the longest suffix of layers whose workload it finishes by the deadline
    (algorithm 3: the partial training ratio α); backpropagation ends there. Each layer is the mean over the clients
    that trained it. The paper's clients measure their speed at the beginning of a round; here they know it, which
    favours the method. The paper lets fast clients train further epochs; here no client exceeds the experiment's
    workload, as with every other method. `deadline` is the paper's aggregation interval, in seconds; the default is the
    usual time of the experiment's devices.
    """

    name: Literal["timelyfl"] = "timelyfl"

    def workloads(self, workload: Workload) -> tuple[Workload, ...]:
        """Return the workload with 1, 2, … and all of its layers."""
        return tuple(replace(workload, depth=depth) for depth in range(1, workload.costs.num_layers + 1))

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Give each client the deepest workload that it finishes in time, and the shallowest if it finishes none."""
        given = largest_workloads_by(options, self.deadline_seconds(usual_seconds))
        layers = len(options)
        trained = np.arange(layers) >= layers - 1 - np.asarray(given.workloads)[:, None]
        return replace(given, steps=given.steps * trained, finished=given.finished * trained)
