"""Many runs, one after another or shared among processes, with the same results."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context, parent_process
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from salf.data import load
from salf.errors import SalfError
from salf.experiment import Experiment
from salf.participation import StarvationWarning
from salf.records import RoundRecord
from salf.runs.folder import RunFolder
from salf.runs.run import Run, run_experiment

RunsObserver = Callable[[int], None] | None


@dataclass(frozen=True)
class Assignment:
    """A run to be done: its experiment, the folder in which it is kept, and whether it goes on where it was stopped.

    With `validate` it is tested on training examples that are held out, not on the test data.
    """

    experiment: Experiment
    folder: Path | None
    resume: bool
    validate: bool = False


def run_all(assignments: Sequence[Assignment], *, jobs: int = 1, watch: RunsObserver = None) -> list[Run]:
    """Do all runs, on `jobs` processes; `watch` is called with the number of rounds done so far.

    Each run computes on one thread, so that its results do not depend on `jobs`. Raises the first error of any run,
    once the others have stopped and saved what they have.
    """
    for one in assignments:
        if one.folder is not None:
            RunFolder.check(one.folder, one.experiment, resume=one.resume)
    return _run_here(assignments, watch) if jobs == 1 else _run_in_processes(assignments, watch, jobs)


def _run_here(assignments: Sequence[Assignment], watch: RunsObserver) -> list[Run]:
    done = count(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_run(one, lambda _: None if watch is None else watch(next(done))) for one in assignments]
    finally:
        torch.set_num_threads(threads)


def _run_in_processes(assignments: Sequence[Assignment], watch: RunsObserver, jobs: int) -> list[Run]:
    # A process is started afresh, not forked: torch's threads do not survive a fork.
    context = get_context("spawn")
    stop, done = context.Event(), context.Value("q", 0)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_become_worker, initargs=(stop, done)) as pool:
        try:
            with _interrupts_ignored():
                futures = [pool.submit(_run_in_worker, one) for one in assignments]
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


def _wait(futures: Sequence[Future[Run]], done: "Synchronized[int]", watch: RunsObserver) -> None:
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


def _run_in_worker(assignment: Assignment) -> Run:
    return _run(assignment, _count_round)


def _run(assignment: Assignment, watch: Callable[[RoundRecord], None]) -> Run:
    dataset = None
    if assignment.validate:
        settings = assignment.experiment.data
        dataset = load(settings.name, settings.root).held_out(assignment.experiment.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StarvationWarning)  # each run tells at its end, and they are told together
        return run_experiment(assignment.experiment, assignment.folder, assignment.resume, watch=watch, dataset=dataset)


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
