"""Giving each client only as many layers to train as it has time for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from salf.aggregation import Contributors, Rule
from salf.devices import CompletionTimes, Workload
from salf.methods.method import SynchronousMethod
from salf.methods.schedules import RoundSchedule, largest_jobs_by
from salf.values import Positive, validated


@validated
class TimelyFL(SynchronousMethod):
    """TimelyFL (Zhang et al., arXiv 2304.06947): the layers nearest to the input are frozen where time is short.

    Before it trains, each client is given the longest suffix of layers of which it can do the whole job by the deadline
    (algorithm 3: the partial training ratio α); backpropagation ends there. Each layer is the mean over those who
    trained it. The paper's clients measure their speed at the beginning of a round; here they know it, which is kinder.
    The paper lets fast clients fill the interval with further epochs; here nobody does more than the experiment's job,
    as with every other method. `deadline` (the paper's aggregation interval) is in seconds; without one it is the usual
    time of the experiment's devices.
    """

    name: Literal["timelyfl"] = "timelyfl"
    deadline: Positive | None = None

    def workloads(self, workload: Workload) -> tuple[Workload, ...]:
        """Return the job with 1, 2, … and all of its layers."""
        return tuple(replace(workload, depth=depth) for depth in range(1, workload.costs.num_layers + 1))

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Give each client the deepest job that it finishes in time, and the shallowest if it finishes none."""
        given = largest_jobs_by(options, self.deadline or usual_seconds)
        layers = len(options)
        trained = np.arange(layers) >= layers - 1 - np.asarray(given.workloads)[:, None]
        return replace(given, steps=given.steps * trained, finished=given.finished * trained)

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over those who trained a layer."""
        return Contributors(weight_by_examples=self.weight_by_examples)
