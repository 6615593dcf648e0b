"""Several methods on equal terms: the same data, seeds and devices, and what comes of it in one table."""

import math
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev

import torch

from salf.errors import InvalidSetting
from salf.experiment import Experiment
from salf.records import time_to_accuracy
from salf.runs import Run, run_experiment


@dataclass(frozen=True)
class Summary:
    """What a method's runs over all seeds come to.

    `accuracies` are the final test accuracies, seed by seed, `time_s` the mean virtual time of a whole run,
    `times_to_target` the virtual time at which each seed's run first reached the target (infinite: never), `work_kept`
    the share of finished work that entered the model.
    """

    method: str
    accuracies: tuple[float, ...]
    time_s: float
    times_to_target: tuple[float, ...]
    work_kept: float

    @property
    def accuracy(self) -> float:
        """The mean final accuracy."""
        return fmean(self.accuracies)

    @property
    def deviation(self) -> float:
        """The standard deviation of the final accuracy over seeds; NaN for a single seed."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else math.nan

    @property
    def time_to_target(self) -> float:
        """The mean virtual time to the target; infinite if any seed never reached it."""
        return fmean(self.times_to_target)


@dataclass(frozen=True)
class Comparison:
    """The runs of every method, in the order in which they were asked for, and the accuracy they are timed to."""

    experiment: Experiment
    target: float
    runs: dict[str, tuple[Run, ...]]

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """One summary per method."""
        return tuple(self._summarise(method, runs) for method, runs in self.runs.items())

    def _summarise(self, method: str, runs: Sequence[Run]) -> Summary:
        kept = [record.work_kept for run in runs for record in run.records if record.work_kept is not None]
        return Summary(
            method,
            tuple(run.accuracy for run in runs),
            fmean(run.time_s for run in runs),
            tuple(time_to_accuracy(run.records, self.target) for run in runs),
            fmean(kept) if kept else math.nan,
        )


def compare(
    experiment: Experiment,
    methods: Sequence[str],
    seeds: int,
    out: Path | None = None,
    *,
    resume: bool = False,
    jobs: int = 1,
    watch: Callable[[int], None] | None = None,
) -> Comparison:
    """Run `experiment` by each of `methods` with `seeds` seeds, counted up from the experiment's own.

    Each run is kept in `out/METHOD/seed-N` if a folder is given. With `jobs` above 1 that many processes share the
    runs, each with one thread; the results are the same. `watch` is called with the number of rounds done so far.
    """
    if seeds < 1:
        raise InvalidSetting(f"seeds is {seeds}; a comparison needs at least 1")
    if not methods or len(set(methods)) < len(methods):
        raise InvalidSetting(f"methods are {', '.join(methods) or 'none'}; name each method to compare once")
    planned = [
        replace(experiment.with_method(method), seed=experiment.seed + number)
        for method in methods
        for number in range(seeds)
    ]
    with tempfile.TemporaryDirectory(prefix="salf-") as scratch:
        base = Path(scratch) if out is None else out
        folders = [base / one.method.name / f"seed-{one.seed}" for one in planned]
        runs = _run_all(planned, folders, resume=resume, jobs=jobs, watch=watch)
        if out is None:
            runs = [replace(run, folder=None) for run in runs]
    found = {method: tuple(run for run in runs if run.experiment.method.name == method) for method in methods}
    return Comparison(experiment, _target(experiment, found), found)


def _run_all(
    planned: Sequence[Experiment],
    folders: Sequence[Path],
    *,
    resume: bool,
    jobs: int,
    watch: Callable[[int], None] | None,
) -> list[Run]:
    if jobs == 1:
        done = count()
        tell = (lambda _: watch(next(done) + 1)) if watch is not None else None
        return [run_experiment(one, folder, resume, watch=tell) for one, folder in zip(planned, folders, strict=True)]
    # A process is started afresh, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_use_one_thread) as pool:
        futures = [
            pool.submit(run_experiment, one, folder, resume) for one, folder in zip(planned, folders, strict=True)
        ]
        try:
            _wait(futures, folders, watch)
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _wait(futures: Sequence[Future[Run]], folders: Sequence[Path], watch: Callable[[int], None] | None) -> None:
    """Wait until all runs have ended or one has failed, telling `watch` how many rounds their folders hold."""
    pending = True
    while pending:
        pending = bool(wait(futures, timeout=0.25, return_when=FIRST_EXCEPTION).not_done)
        failed = [future for future in futures if future.done() and future.exception() is not None]
        if failed:
            failed[0].result()
        if watch is not None:
            watch(sum(_count_lines(folder / "records.jsonl") for folder in folders))


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _target(experiment: Experiment, runs: dict[str, tuple[Run, ...]]) -> float:
    """Return the experiment's target accuracy; without one, 95 % of the best method's mean final accuracy."""
    if experiment.evaluate.target is not None:
        return experiment.evaluate.target
    return 0.95 * max(fmean(run.accuracy for run in some) for some in runs.values())
