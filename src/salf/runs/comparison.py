"""Several methods on equal terms: the same data, seeds and devices, summarised method by method.

Also a learning rate for each method, so that none is judged by a rate that suits another.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

import numpy as np
import scipy

from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.records import accuracy_at, deviation_of, mean_work_kept, target_accuracy, time_to_accuracy
from salf.runs.pool import RunsObserver, run_all
from salf.runs.run import Run

_ROUNDING = 1 + 1e-9  # equal times that were summed from unequal deadlines differ by rounding


@dataclass(frozen=True)
class Summary:
    """The results of one method's runs over all seeds.

    Attributes:
        method: The method's name.
        accuracies: Final test accuracy of each seed, between 0 and 1.
        equal_time_accuracies: Accuracy of each seed at the virtual time at which the shortest of all runs ended.
        time_s: Mean virtual time of a whole run, in seconds.
        times_to_target: Virtual time at which each seed first reached the target; infinite if it never did.
        work_kept: Share of the clients' finished work that entered the model.
        bytes_down: Mean bytes that the server of a run sent.
        bytes_up: Mean bytes that it received.
        starving: The layers that starved in any of the runs, input to output.
        rival: The best other method at equal virtual time; None without one.
        p_value: Of a paired t-test against the rival, two-sided, seed by seed; None for a single seed.
    """

    method: str
    accuracies: tuple[float, ...]
    equal_time_accuracies: tuple[float, ...]
    time_s: float
    times_to_target: tuple[float, ...]
    work_kept: float
    bytes_down: float
    bytes_up: float
    starving: tuple[str, ...] = ()
    rival: str | None = None
    p_value: float | None = None

    @property
    def accuracy(self) -> float:
        """The mean final accuracy."""
        return fmean(self.accuracies)

    @property
    def deviation(self) -> float:
        """The standard deviation of the final accuracy over seeds; NaN for a single seed."""
        return deviation_of(self.accuracies)

    @property
    def equal_time_accuracy(self) -> float:
        """The mean accuracy at equal virtual time; NaN where some run was not tested by then."""
        return fmean(self.equal_time_accuracies)

    @property
    def equal_time_deviation(self) -> float:
        """The standard deviation at equal virtual time; NaN also where some run was not tested by then."""
        return deviation_of(self.equal_time_accuracies)

    @property
    def time_to_target(self) -> float:
        """The mean virtual time to the target; infinite if any seed never reached it."""
        return fmean(self.times_to_target)


@dataclass(frozen=True)
class Comparison:
    """The runs of every method.

    Attributes:
        experiment: What all runs have in common.
        target: The accuracy to which time is measured.
        runs: The runs of each method, one per seed, in the order in which the methods were named.
    """

    experiment: Experiment
    target: float
    runs: dict[str, tuple[Run, ...]]

    @property
    def equal_time_s(self) -> float:
        """The virtual time at which the shortest of all runs ended."""
        return min(run.time_s for runs in self.runs.values() for run in runs)

    @cached_property
    def summaries(self) -> tuple[Summary, ...]:
        """One summary per method."""
        alone = [self._summarise(method, runs) for method, runs in self.runs.items()]
        return tuple(_against_rival(summary, alone) for summary in alone)

    def speed_up(self, summary: Summary) -> float | None:
        """Return the time to target of `fedavg` divided by that of a method; None if either never reaches it."""
        waiting = next((other for other in self.summaries if other.method == "fedavg"), None)
        if waiting is None or math.isinf(waiting.time_to_target) or math.isinf(summary.time_to_target):
            return None
        return waiting.time_to_target / summary.time_to_target

    def _summarise(self, method: str, runs: Sequence[Run]) -> Summary:
        """Summarise a method's runs, one per seed, without its rival."""
        return Summary(
            method,
            tuple(run.accuracy for run in runs),
            tuple(accuracy_at(run.records, self.equal_time_s * _ROUNDING) for run in runs),
            fmean(run.time_s for run in runs),
            tuple(time_to_accuracy(run.records, self.target) for run in runs),
            mean_work_kept(record for run in runs for record in run.records),
            fmean(sum(record.bytes_down for record in run.records) for run in runs),
            fmean(sum(record.bytes_up for record in run.records) for run in runs),
            tuple(dict.fromkeys(one.layer for run in runs for one in run.starving)),
        )


def compare(
    experiment: Experiment,
    methods: Sequence[str],
    seeds: int,
    out: Path | None = None,
    *,
    resume: bool = False,
    jobs: int = 1,
    watch: RunsObserver = None,
    learning_rates: Mapping[str, float] | None = None,
) -> Comparison:
    """Run an experiment by several methods over several seeds.

    Args:
        experiment: What all runs have in common; its seed is the first.
        methods: Names of methods, each once.
        seeds: How many seeds, counted up from the experiment's own.
        out: Keeps each run in `out/METHOD/seed-N`; None keeps nothing.
        resume: Whether runs that are already there continue.
        jobs: How many processes share the runs.
        watch: Called with the number of rounds played so far.
        learning_rates: A `client.lr` for some of the methods.

    Raises:
        SalfError: The first error of any run, once the others have stopped and saved what they have.

    >>> experiment = Experiment.load("digits", rounds=2, **{"data.clients": 4})
    >>> [(one.method, len(one.accuracies)) for one in compare(experiment, ["salf", "drop"], seeds=2).summaries]
    [('salf', 2), ('drop', 2)]
    """
    _check_methods(methods, seeds)
    rates = learning_rates or {}
    planned = [
        _variant(experiment, method, experiment.seed + number, rates.get(method))
        for method in methods
        for number in range(seeds)
    ]
    kept = [(one, out and out / one.method.name / f"seed-{one.seed}") for one in planned]
    runs = run_all(kept, resume=resume, jobs=jobs, watch=watch)
    found = {method: tuple(run for run in runs if run.experiment.method.name == method) for method in methods}
    target = target_accuracy(experiment.evaluate.target, ([run.records for run in some] for some in found.values()))
    return Comparison(experiment, target, found)


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
    _check_methods(methods, 1)
    wrong = [rate for rate in rates if not (math.isfinite(rate) and rate > 0)]
    if not rates or wrong or len(set(rates)) < len(rates):
        raise InvalidSetting(f"learning rates are {[*rates]}; choose different positive numbers, such as 0.03, 0.1")
    planned = [_variant(experiment, method, seed, rate) for method in methods for rate in rates]
    kept = [(one, out and out / one.method.name / "tuning" / f"lr-{one.client.lr!r}") for one in planned]
    accuracies: dict[str, dict[float, float]] = {method: {} for method in methods}
    for run in run_all(kept, resume=resume, validate=True, jobs=jobs, watch=watch):
        accuracies[run.experiment.method.name][run.experiment.client.lr] = run.accuracy
    return Tuning(accuracies)


def _check_methods(methods: Sequence[str], seeds: int) -> None:
    """Raise `InvalidSetting` unless there is something to compare."""
    if seeds < 1:
        raise InvalidSetting(f"seeds is {seeds}; choose at least 1")
    if not methods or len(set(methods)) < len(methods):
        raise InvalidSetting(f"methods are {', '.join(methods) or 'none'}; name each method to compare once")


def _variant(experiment: Experiment, method: str, seed: int, rate: float | None) -> Experiment:
    """Return the experiment with another method, seed and, unless it is None, learning rate."""
    client = experiment.client if rate is None else replace(experiment.client, lr=rate)
    return replace(experiment.with_method(method), seed=seed, client=client)


def _against_rival(summary: Summary, everyone: Sequence[Summary]) -> Summary:
    """Add the best of the other methods at equal virtual time, and how sure the difference is."""
    others = (other for other in everyone if other.method != summary.method)
    tested = [other for other in others if math.isfinite(other.equal_time_accuracy)]
    if not tested:
        return summary
    rival = max(tested, key=lambda other: other.equal_time_accuracy)
    chance = _paired_p_value(summary.equal_time_accuracies, rival.equal_time_accuracies)
    return replace(summary, rival=rival.method, p_value=chance)


def _paired_p_value(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the p-value of a paired t-test, two-sided.

    None where the test says nothing: fewer than two pairs, values that are not finite, or pairs that all differ by the
    same amount.
    """
    differences = np.subtract(one, other)
    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    if np.ptp(differences) == 0:
        return None if differences[0] else 1.0
    freedom = len(differences) - 1
    # As scipy.stats.ttest_rel, to the last bit; to import it takes as long as all else that reads finished runs.
    variance = np.var(differences) * (len(differences) / freedom)
    statistic = np.mean(differences) / np.sqrt(variance / len(differences))
    return float(2 * scipy.special.stdtr(freedom, -abs(statistic)))
