"""A learning rate for each method of a comparison, so that no competitor is handicapped by another's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.runs.comparison import check_methods, with_learning_rate
from salf.runs.pool import Assignment, RunsObserver, run_all
from salf.runs.run import Run


@dataclass(frozen=True)
class Tuning:
    """What each learning rate reached for each method: `accuracies[method][rate]`, and the best of them."""

    accuracies: dict[str, dict[float, float]]

    @property
    def learning_rates(self) -> dict[str, float]:
        """The best rate of each method; the smallest of equally good ones."""
        return {method: max(sorted(tried), key=lambda rate: tried[rate]) for method, tried in self.accuracies.items()}

    @property
    def edges(self) -> dict[str, str]:
        """The methods whose best rate is the "smallest" or the "largest" of several that were tried.

        One beyond may be better still: only between two others is a rate known to be the best.
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
    """Try every rate with every method, and judge each by its final accuracy.

    They are judged by a tenth of the training examples, which is held out, not by the test data, and with a `seed` that
    should not be one of those to be compared. Runs are kept in `out/METHOD/tuning/lr-RATE` if a folder is given. Raises
    `InvalidSetting` for rates that are no positive numbers.
    """
    check_methods(methods, 1)
    wrong = [rate for rate in rates if not (math.isfinite(rate) and rate > 0)]
    if not rates or wrong or len(set(rates)) < len(rates):
        raise InvalidSetting(f"learning rates are {[*rates]}; name different positive numbers, such as 0.03, 0.1, 0.3")
    planned = [
        replace(with_learning_rate(experiment.with_method(method), {method: rate}), seed=seed)
        for method in methods
        for rate in rates
    ]
    runs = run_all(
        [Assignment(one, _folder(one, out), resume, validate=True) for one in planned], jobs=jobs, watch=watch
    )
    return Tuning({method: _judge(runs, method) for method in methods})


def _folder(experiment: Experiment, out: Path | None) -> Path | None:
    return None if out is None else out / experiment.method.name / "tuning" / f"lr-{experiment.client.lr!r}"


def _judge(runs: Sequence[Run], method: str) -> dict[float, float]:
    """Return the final accuracy of each rate."""
    return {run.experiment.client.lr: run.accuracy for run in runs if run.experiment.method.name == method}
