"""Plays runs undisturbed, and the same runs in children that SIGKILL ends at random instants, for `test_survival`.

    python lives.py FOLDER RUNS METHOD...

PyTorch is imported once; each life of a run is a fork. It prints how many lives of each method were cut short, as JSON.
"""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from random import Random

import torch

from salf.data import load
from salf.experiment.experiment import Experiment
from salf.runs.run import run_experiment

LIVES = 4
SETTINGS = {"rounds": 20, "data.clients": 12, "client.batch_size": 4, "client.cohort": 5, "evaluate.every": 10}
SMALL = {"model.name": "mlp", "model.hidden": [16]}
# What a method keeps from round to round besides the weights.
MEMORIES: dict[str, dict[str, object]] = {
    "salf": {"method.rule": "memory"},
    "heterofl": {"method.name": "heterofl", "server.optimizer": "yogi", "server.lr": 0.1},
    "fedasync": {"method.name": "fedasync", "devices.kind": "physical"},
    "salfplus": {"method.name": "salfplus", "method.long_every": 3, "server.optimizer": "adam", "server.lr": 0.1},
    "fedbuff": {"method.name": "fedbuff", "devices.kind": "physical", "method.buffer": 7},
}


def begin(folder: Path, method: str) -> int:
    """Play or resume a run in a child process; return the child's number."""
    child = os.fork()
    if child == 0:
        run = Experiment.load("digits", **{**SETTINGS, **SMALL, **MEMORIES.get(method, {"method.name": method})})
        run_experiment(run, folder, resume=True, checkpoint_seconds=0.0)
        os._exit(0)
    return child


def kill_again_and_again(base: Path, method: str, runs: int) -> int:
    """Play one run undisturbed and the others with interruptions; return the number of kills."""
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
    return kills


def main(base: Path, runs: int, methods: list[str]) -> None:
    """Kill runs of each method in a folder of its own."""
    torch.set_num_threads(1)
    # Once here, not in each child: the data, and what copying a parameter imports.
    load("digits")
    importlib.import_module("torch._dynamo")
    json.dump({method: kill_again_and_again(base / method, method, runs) for method in methods}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
