"""A learning rate for each method of a comparison, so that none is judged by a rate that suits another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.runs.comparison import check_methods, variant
from salf.runs.pool import Assignment, RunsObserver, run_all


@dataclass(frozen=True)
class Tuning:
    """The accuracy of each learning rate for each method.

    Attributes:
        accuracies: `accuracies[method][rate]` is the final accuracy on held-out training examples.

    >>> tuning = Tuning({"salf": {0.1: 0.8, 0.3: 0.9}})
    >>> tuning.learning_rates, tuning.edges
    ({'salf': 0.3}, {'salf': 'largest'})
    """

    accuracies: dict[str, dict[float, float]]

    @property
    def learning_rates(self) -> dict[str, float]:
        """The best rate of each method; the smallest of equally good ones."""
        return {method: max(sorted(tried), key=lambda rate: tried[rate]) for method, tried in self.accuracies.items()}

    @property
    def edges(self) -> dict[str, str]:
        """The methods whose best rate is the "smallest" or the "largest" of several.

        A rate beyond it may be better: a rate is known to be the best only between two others.
        """
        ends = {method: (min(tried), max(tried)) for method, tried in self.accuracies.items() if len(tried) > 1}
        best = self.learning_rates
        return {
            method: "smallest" if best[method] == low else "largest"
            for method, (low, high) in ends.items()
            if best[method] in (low, high)
        }


def tune(
    experiment: Experiment,
    methods: Sequence[str],
    rates: Sequence[float],
    seed: int,
    out: Path | None = None,
    *,
    resume: bool = False,
    jobs: int = 1,
    watch: RunsObserver = None,
) -> Tuning:
    """Try every learning rate with every method, and judge each by its final accuracy.

    A tenth of the training examples is held out to judge the rates; the test data are not used.

    Args:
        experiment: What all runs have in common.
        methods: Names of methods, each once.
        rates: Different positive learning rates.
        seed: The seed of all runs; choose one that is not compared later.
        out: Keeps each run in `out/METHOD/tuning/lr-RATE`; None keeps nothing.
        resume: Whether runs that are already there continue.
        jobs: How many processes share the runs.
        watch: Called with the number of rounds played so far.

    Raises:
        InvalidSetting: The rates are not different positive numbers.
    """
    check_methods(methods, 1)
    wrong = [rate for rate in rates if not (math.isfinite(rate) and rate > 0)]
    if not rates or wrong or len(set(rates)) < len(rates):
        raise InvalidSetting(f"learning rates are {[*rates]}; choose different positive numbers, such as 0.03, 0.1")
    planned = [variant(experiment, method, seed, rate) for method in methods for rate in rates]
    folders = [out and out / one.method.name / "tuning" / f"lr-{one.client.lr!r}" for one in planned]
    assignments = [Assignment(one, folder, resume, validate=True) for one, folder in zip(planned, folders, strict=True)]
    accuracies: dict[str, dict[float, float]] = {method: {} for method in methods}
    for run in run_all(assignments, jobs=jobs, watch=watch):
        accuracies[run.experiment.method.name][run.experiment.client.lr] = run.accuracy
    return Tuning(accuracies)
