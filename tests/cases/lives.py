"""A program that plays one run undisturbed and the same run in children that SIGKILL ends, for `test_survival`.

    python lives.py FOLDER METHOD RUNS

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

from salf.experiment.experiment import Experiment
from salf.runs.run import run_experiment

LIVES = 4
SETTINGS = {"rounds": 40, "data.clients": 12, "client.batch_size": 4, "client.cohort": 5, "evaluate.every": 20}
# What a method hands on from round to round besides the weights.
MEMORIES: dict[str, dict[str, object]] = {
    "salf": {"method.rule": "memory"},
    "heterofl": {"method.name": "heterofl", "server.optimizer": "yogi", "server.lr": 0.1},
    "fedasync": {"method.name": "fedasync", "devices.kind": "physical", "rounds": 20},
    "salfplus": {"method.name": "salfplus", "method.long_every": 3, "server.optimizer": "adam", "server.lr": 0.1},
    "fedbuff": {"method.name": "fedbuff", "devices.kind": "physical", "rounds": 20, "method.buffer": 7},
}


def begin(folder: Path, method: str) -> int:
    """Play, or play on, in a child process; return its number."""
    child = os.fork()
    if child == 0:
        run = Experiment.load("digits", **{**SETTINGS, **MEMORIES.get(method, {"method.name": method})})
        run_experiment(run, folder, resume=True, checkpoint_seconds=0.0)
        os._exit(0)
    return child


def main(base: Path, method: str, runs: int) -> None:
    """Play one run undisturbed and the others with interruptions."""
    torch.set_num_threads(1)
    began = time.monotonic()
    os.waitpid(begin(base / "undisturbed", method), 0)
    whole, random, kills = time.monotonic() - began, Random(7), 0
    for number in range(runs):
        folder = base / f"killed-{number}"
        for _ in range(LIVES):
            child = begin(folder, method)
            time.sleep(random.uniform(0.05, 0.5) * whole)
            os.kill(child, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        os.waitpid(begin(folder, method), 0)
    json.dump({"kills": kills}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
