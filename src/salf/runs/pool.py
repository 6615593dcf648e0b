"""Many runs, one after another or shared among processes, with the same results."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
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
from salf.runs.run import Run, read_finished_run, run_experiment
from salf.runs.run_files import check_folder

RunsObserver = Callable[[int], None] | None  # called with the number of rounds played
_PlannedRun = Callable[[Callable[[RoundRecord], None]], Run]  # called with what observes each record


def run_all(
    planned: Sequence[tuple[Experiment, Path | None]],
    *,
    resume: bool,
    validate: bool = False,
    jobs: int = 1,
    watch: RunsObserver = None,
) -> list[Run]:
    """Do all runs; if all of them are finished in their folders, only read them.

    Each run computes on one thread, so results do not depend on `jobs`.

    Args:
        planned: What to compute, each with the folder in which the run is kept; None keeps nothing.
        resume: Whether runs that are already in their folders continue; all are checked before the first run starts.
        validate: Whether to test on held-out training examples instead of the test data.
        jobs: How many processes share the runs; 1 runs them in this process.
        watch: Called with the number of rounds played so far.

    Raises:
        SalfError: The first error of any run, once the others have stopped and saved what they have.
    """
    for experiment, folder in planned:
        if folder is not None:
            check_folder(folder, experiment, resume=resume)
    finished = _read_all(planned)
    if finished is not None:
        return finished
    runs = [partial(_run, experiment, folder, resume=resume, validate=validate) for experiment, folder in planned]
    return _run_here(runs, watch) if jobs == 1 else _run_in_processes(runs, watch, jobs)


def _read_all(planned: Sequence[tuple[Experiment, Path | None]]) -> list[Run] | None:
    """Return the runs if all are finished.

    Otherwise none is taken as it is: resuming checks that each was made on the data that the others are made on now.
    """
    found: list[Run] = []
    for experiment, folder in planned:
        run = None if folder is None else read_finished_run(folder, experiment)
        if run is None:
            return None
        found.append(run)
    return found


def _run_here(runs: Sequence[_PlannedRun], watch: RunsObserver) -> list[Run]:
    """Do the runs one after another, on one thread."""
    done = count(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [run(lambda _: None if watch is None else watch(next(done))) for run in runs]
    finally:
        torch.set_num_threads(threads)


def _run_in_processes(runs: Sequence[_PlannedRun], watch: RunsObserver, jobs: int) -> list[Run]:
    """Share the runs among `jobs` new processes, and wait for all of them."""
    # Processes are spawned, not forked: torch's threads do not survive a fork.
    context = get_context("spawn")
    stop, done = context.Event(), context.Value("q", 0)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_become_worker, initargs=(stop, done)) as pool:
        try:
            with _interrupts_ignored():
                futures = [pool.submit(run, _count_round) for run in runs]
            _wait(futures, done, watch)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise SalfError(
                "a process of the comparison died (was the memory used up?); resume the runs that were kept (--resume) "
                "on fewer processes (--jobs)"
            ) from error
        finally:
            # All runs have ended, or one has failed: the others stop after the round they are in.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _wait(futures: Sequence[Future[Run]], done: "Synchronized[int]", watch: RunsObserver) -> None:
    """Wait until all runs have ended or one has failed; call `watch` with the number of rounds played."""
    pending = True
    while pending:
        ended, running = wait(futures, timeout=0.25, return_when=FIRST_EXCEPTION)
        pending = bool(running)
        for future in ended:
            future.result()
        if watch is not None:
            watch(done.value)


class _Stopped(Exception):
    """The comparison ended while this run was in progress."""


# What a worker shares with the process that started it: the order to stop, and the rounds played by all.
# It is set in worker processes, where initialisers can only leave it in a global.
_shared: "tuple[Event, Synchronized[int]] | None" = None


def _become_worker(stop: Event, done: "Synchronized[int]") -> None:
    """Prepare a new process: it ignores Ctrl-C, computes on one thread, and counts its rounds for all."""
    global _shared  # noqa: PLW0603 - see its definition
    _shared = stop, done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started the workers stops them
    torch.set_num_threads(1)


def _run(
    experiment: Experiment, folder: Path | None, watch: Callable[[RoundRecord], None], *, resume: bool, validate: bool
) -> Run:
    """Do a run; with `validate` on data whose test examples are a tenth of the training examples."""
    data = experiment.data
    dataset = load(data.name, data.root).held_out(experiment.seed) if validate else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StarvationWarning)  # the comparison reports starving layers at its end
        return run_experiment(experiment, folder, resume, watch=watch, dataset=dataset)


def _count_round(_: RoundRecord) -> None:
    """Count a round; stop if the comparison has ended or the process that started it is dead."""
    if _shared is None:
        return
    parent = parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)
    stop, done = _shared
    if stop.is_set():
        raise _Stopped
    with done.get_lock():
        done.value += 1


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Make processes that start within the block ignore Ctrl-C from their first moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
