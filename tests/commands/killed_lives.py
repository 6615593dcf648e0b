"""A program that plays runs in child processes and kills them, for `test_killed_runs`.

    python killed_lives.py FOLDER

PyTorch is imported once; each life of a run is a fork, killed by the system's SIGKILL: one run at pseudo-random
moments, another at every single step in which it writes to the disk. It prints how often, as one line of JSON.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

import torch

from salf.data import load
from salf.experiment import Experiment
from salf.runs import run_experiment

SMALL = {"data.clients": 12, "client.batch_size": 4, "model.channels": [4], "model.hidden": [16]}
# Its state is the memory of every client, and how often each was observed.
LONG = Experiment.load("digits", rounds=40, **SMALL, **{"method.rule": "memory", "client.cohort": 5})
SHORT = Experiment.load("digits", rounds=5, **SMALL, **{"method.rule": "inverse-probability", "client.cohort": 5})


def begin(life: Callable[[], object]) -> int:
    """Live in a child process; return its number."""
    child = os.fork()
    if child:
        return child
    try:
        life()
    except BaseException:  # noqa: BLE001 - whatever it was, the child must not go on as its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def was_killed(child: int) -> bool:
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise SystemExit(f"a life failed with status {status}")
    return False


def play(experiment: Experiment, folder: Path) -> Callable[[], object]:
    return lambda: run_experiment(experiment, folder, resume=True, checkpoint_seconds=0.0)


def play_until_step(experiment: Experiment, folder: Path, last: int) -> Callable[[], object]:
    """Play until the last-th time that a file is made sure of, given its name, or a folder made; die just before."""
    done = count(1)

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if next(done) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    def life() -> None:
        os.mkdir, os.fsync, os.replace = dying(os.mkdir), dying(os.fsync), dying(os.replace)  # type: ignore[assignment]
        play(experiment, folder)()

    return life


def kill_at_random(folder: Path, longest: float, random: Random) -> bool:
    """Live for a random time, `longest` seconds at most; return whether death came before the end."""
    child = begin(play(LONG, folder))
    time.sleep(random.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    return was_killed(child)


def time_of(life: Callable[[], object]) -> float:
    began = time.monotonic()
    was_killed(begin(life))
    return time.monotonic() - began


def main(base: Path) -> None:
    torch.set_num_threads(1)
    load("digits")  # once for all children
    random = Random(20240318)
    whole = time_of(play(LONG, base / "long"))
    start = time_of(play(LONG, base / "long"))
    kills = 0
    while kills < 12 or not (base / "long-killed" / "model.safetensors").exists():
        # Long enough for some rounds on average, and longer when the machine is busy.
        kills += kill_at_random(base / "long-killed", (2 * start + whole / 6) * (1 + kills / 12), random)
    after = sum(kill_at_random(base / "long-killed", start, random) for _ in range(3))
    was_killed(begin(play(LONG, base / "long-killed")))

    was_killed(begin(play(SHORT, base / "short")))
    steps = 0
    for step in count(1):
        folder = base / f"short-killed-{step}"
        if not was_killed(begin(play_until_step(SHORT, folder, step))):
            break
        steps = step
        was_killed(begin(play(SHORT, folder)))
    json.dump({"at random": kills, "after the end": after, "at steps": steps}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
