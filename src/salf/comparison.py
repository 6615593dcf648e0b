"""Several methods on equal terms: the same data, seeds and devices, and what comes of it in one table."""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing import get_context, parent_process
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import fmean, stdev

import torch

from salf.errors import InvalidSetting, SalfError
from salf.experiment import Experiment
from salf.records import RoundRecord, time_to_accuracy
from salf.runs import Run, RunFolder, run_experiment

_Watch = Callable[[int], None] | None
_Task = tuple[Experiment, Path | None]


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

    Each run is kept in `out/METHOD/seed-N` if a folder is given; `resume` goes on with those that are there. With
    `jobs` above 1 that many processes share the runs. Each run computes on one thread, so that its results do not
    depend on `jobs`. `watch` is called with the number of rounds done so far.

    Raises the first error of any run, once the others have stopped and saved what they have.
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
    tasks = [(one, None if out is None else out / one.method.name / f"seed-{one.seed}") for one in planned]
    for one, folder in tasks:
        if folder is not None:
            RunFolder.check(folder, one, resume=resume)
    runs = _run_here(tasks, resume, watch) if jobs == 1 else _run_in_processes(tasks, resume, watch, jobs)
    found = {method: tuple(run for run in runs if run.experiment.method.name == method) for method in methods}
    return Comparison(experiment, _target(experiment, found), found)


def _run_here(tasks: Sequence[_Task], resume: bool, watch: _Watch) -> list[Run]:  # noqa: FBT001
    done = count(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            run_experiment(one, folder, resume, watch=lambda _: None if watch is None else watch(next(done)))
            for one, folder in tasks
        ]
    finally:
        torch.set_num_threads(threads)


def _run_in_processes(tasks: Sequence[_Task], resume: bool, watch: _Watch, jobs: int) -> list[Run]:  # noqa: FBT001
    # A process is started afresh, not forked: torch's threads do not survive a fork.
    context = get_context("spawn")
    stop, done = context.Event(), context.Value("q", 0)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_become_worker, initargs=(stop, done)) as pool:
        try:
            with _interrupts_ignored():
                futures = [pool.submit(_run_in_worker, one, folder, resume) for one, folder in tasks]
            _wait(futures, done, watch)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise SalfError(
                "a process of the comparison died (was the memory used up?); share the runs among fewer processes "
                "(--jobs), and go on with those that were kept (--resume)"
            ) from error
        finally:
            # Nothing is left to do, or somebody failed: the others stop after the round they are in.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _wait(futures: Sequence[Future[Run]], done: "Synchronized[int]", watch: _Watch) -> None:
    """Wait until all runs have ended or one has failed, telling `watch` how many rounds were played."""
    pending = True
    while pending:
        pending = bool(wait(futures, timeout=0.25, return_when=FIRST_EXCEPTION).not_done)
        for future in futures:
            if future.done():
                future.result()
        if watch is not None:
            watch(done.value)


class _Stopped(Exception):
    """The comparison was given up while this run was going on."""


@dataclass(frozen=True)
class _Ties:
    """What ties a worker to the process that started it."""

    stop: Event
    done: "Synchronized[int]"


_ties: _Ties | None = None  # set in worker processes only, which cannot be given it in any other way


def _become_worker(stop: Event, done: "Synchronized[int]") -> None:
    global _ties  # noqa: PLW0603
    _ties = _Ties(stop, done)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started the workers stops them
    torch.set_num_threads(1)


def _run_in_worker(experiment: Experiment, folder: Path | None, resume: bool) -> Run:  # noqa: FBT001
    return run_experiment(experiment, folder, resume, watch=_count_round)


def _count_round(_: RoundRecord) -> None:
    """Count a round, unless the comparison was given up or the process that asked for it is dead."""
    if _ties is None:
        return
    parent = parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)
    if _ties.stop.is_set():
        raise _Stopped
    with _ties.done.get_lock():
        _ties.done.value += 1


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let processes that are started meanwhile ignore Ctrl-C from their first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _target(experiment: Experiment, runs: dict[str, tuple[Run, ...]]) -> float:
    """Return the experiment's target accuracy; without one, 95 % of the best method's mean final accuracy."""
    if experiment.evaluate.target is not None:
        return experiment.evaluate.target
    return 0.95 * max(fmean(run.accuracy for run in some) for some in runs.values())
