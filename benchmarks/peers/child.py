"""Time one peer in the environment of this process; print the measurement as JSON.

`benchmarks/peers.py` runs it. A peer is a function `train(workload, lap)` of a module in this folder. It plays all
rounds, calls `lap` at the end of each, and returns the quality of the model.
"""

import argparse
import importlib
import json
import time
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import torch
from workload import Workload


def main() -> None:
    """Play the rounds of the workload by the peer that was requested."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", help="MODULE:FUNCTION")
    parser.add_argument("workload", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True, help="rounds before the clock starts")
    parser.add_argument("--rounds", type=int, required=True, help="rounds in a block")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    workload = Workload.read(options.workload)
    name, function = options.peer.split(":")
    peer = importlib.import_module(name)
    laps: list[float] = []
    outcome = getattr(peer, function)(workload, lambda: laps.append(time.perf_counter()))
    if len(laps) != workload.rounds:
        raise RuntimeError(f"{len(laps)} rounds were played instead of {workload.rounds}")
    # The last round, in which salf evaluates, is not timed.
    marks = laps[options.warm_up - 1 : -1 : options.rounds]
    measurement = {
        "seconds_per_round": [(end - start) / options.rounds for start, end in pairwise(marks)],
        "initial_loss": workload.test(workload.network()).loss,
        **asdict(outcome),
        "versions": {package: version(package) for package in peer.PACKAGES},
    }
    print(json.dumps(measurement), flush=True)


if __name__ == "__main__":
    main()
