"""Plays one run in child processes and kills it at steps in which it writes to the disk, for `test_killed_steps`.

    python killed_steps.py FOLDER STRIDE

It kills at every STRIDE-th step. PyTorch is imported once; each life of a run is a fork. It prints the last step.
"""

import importlib
import math
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

from salf.data import load
from salf.experiment.experiment import Experiment
from salf.runs import folder as runs
from salf.runs.run import run_experiment

# Its state holds the memory of every client, and how often each was observed.
RUN = Experiment.load(
    "digits",
    rounds=2,
    **{"data.clients": 12, "client.cohort": 5, "client.batch_size": 4, "model.hidden": [16], "method.rule": "memory"},
)


def was_killed(life: Callable[[], object]) -> bool:
    """Live in a child process; return whether it was killed before its end."""
    child = os.fork()
    if not child:
        life()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise SystemExit(f"a life failed with status {status}")
    return False


def play(folder: Path, dies_at: float = math.inf) -> None:
    """Play or resume; die just before the given step, which makes a folder, syncs a file or gives it its name."""
    steps = count(1)

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if next(steps) == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    os.mkdir, os.fsync, os.replace = dying(os.mkdir), dying(os.fsync), dying(os.replace)  # type: ignore[assignment]
    run_experiment(RUN, folder, resume=True, checkpoint_seconds=0.0)


def main(base: Path, stride: int) -> None:
    torch.set_num_threads(1)
    runs._CHECKPOINT_SHARE = math.inf  # a checkpoint in every round, however long it takes
    # What each child would otherwise do again: load the data, and import what copying a parameter imports.
    load("digits")
    importlib.import_module("torch._dynamo")
    was_killed(lambda: play(base / "undisturbed"))
    for step in count(1, stride):
        folder = base / f"killed-{step}"
        if not was_killed(lambda folder=folder, step=step: play(folder, step)):  # type: ignore[misc]
            sys.stdout.write(str(step - stride))
            return
        was_killed(lambda folder=folder: play(folder))  # type: ignore[misc]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
