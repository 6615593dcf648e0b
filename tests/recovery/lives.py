"""A program that plays one run undisturbed and the same run in children that SIGKILL ends, for `test_survival`.

    python lives.py FOLDER

PyTorch is imported once; each life is a fork. It prints how many lives were cut short, as JSON.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from random import Random

import torch

from salf.experiment import Experiment
from salf.runs import run_experiment

FOLDERS, LIVES = 4, 4
RUN = Experiment.load(
    "digits",
    rounds=40,
    **{"data.clients": 12, "client.batch_size": 4, "client.cohort": 5, "method.rule": "memory", "evaluate.every": 20},
)


def begin(folder: Path) -> int:
    """Play, or play on, in a child process; return its number."""
    child = os.fork()
    if child == 0:
        run_experiment(RUN, folder, resume=True, checkpoint_seconds=0.0)
        os._exit(0)
    return child


def main(base: Path) -> None:
    """Play one run undisturbed and the others with interruptions."""
    torch.set_num_threads(1)
    began = time.monotonic()
    os.waitpid(begin(base / "undisturbed"), 0)
    whole, random, kills = time.monotonic() - began, Random(7), 0
    for number in range(FOLDERS):
        folder = base / f"killed-{number}"
        for _ in range(LIVES):
            child = begin(folder)
            time.sleep(random.uniform(0.05, 0.5) * whole)
            os.kill(child, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        os.waitpid(begin(folder), 0)
    json.dump({"kills": kills}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
