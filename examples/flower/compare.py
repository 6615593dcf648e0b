"""Compare SALF with Flower's FedAvg with a time-out, in a deployment on this machine with two slow nodes of four.

    python examples/flower/compare.py [--rounds 20] [--deadline 45] [--alike] [--folder DIR]

The program starts a SuperLink and four SuperNodes with TLS and node authentication. It runs the app `after` and then
the app `before`, whose time-out is the deadline plus the grace of SALF's rounds, and prints both results. A layer of a
slow node takes five times as long as one of a fast node, forwards and backwards. An epoch of the 24 batches takes 13
and 67 seconds; starting four processes takes about 20 more on two cores. The default deadline is about half of the time
that a slow node needs. Each node holds a quarter of the examples, sorted by digit, so that the fast nodes have few of
the slow nodes' digits; with `--alike` all nodes hold some of each digit.
"""

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from local_deployment import HERE, LocalDeployment

FAST, SLOW = 0.07, 0.35  # seconds that a layer takes more, forwards and again backwards
LAYERS = NODES = 4
GRACE = 5.0  # seconds, the default of SalfStrategy


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        rounds: The number of rounds.
        seconds: The wall time of the run.
        per_round: The length of a round: the longest under SALF, the mean under FedAvg, whose log says no more.
        accuracy: The test accuracy at the end.
        kept: The share of the sampled nodes' layers that entered the model.
        heard: The mean number of nodes whose last layer entered the model in a round.
        everyone: The number of rounds in which this was all nodes.
    """

    rounds: int
    seconds: float
    per_round: float
    accuracy: float
    kept: float
    heard: float
    everyone: int


def salf(log: str, seconds: float) -> Outcome:
    """Read the outcome of a run under SALF from the records in its log."""
    records = [json.loads(line) for line in re.findall(r"└──> (\{.*\})", log)]
    depths = [sum(depth * count for depth, count in enumerate(record["depths"])) for record in records]
    kept = sum(depths) / sum(LAYERS * record["clients"] for record in records)
    heard = [record["contributors"][-1] for record in records]
    longest, mean = max(record["seconds"] for record in records), sum(heard) / len(records)
    return Outcome(len(records), seconds, longest, accuracy(log), kept, mean, heard.count(NODES))


def fedavg(log: str, seconds: float) -> Outcome:
    """Read the outcome of a run under FedAvg from the numbers of results in its log."""
    received = [int(count) for count in re.findall(r"aggregate_train: Received (\d+) results", log)]
    rounds = len(re.findall(r"\[ROUND ", log))
    mean = sum(received) / rounds
    return Outcome(rounds, seconds, seconds / rounds, accuracy(log), mean / NODES, mean, received.count(NODES))


def accuracy(log: str) -> float:
    """Return the last accuracy that a run printed."""
    return float(re.findall(r"accuracy ([0-9.]+)", log)[-1])


def main() -> int:
    """Run both apps and print the comparison."""
    parser = argparse.ArgumentParser(description="SALF beside Flower's FedAvg with a time-out, two nodes of four slow")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--deadline", type=float, default=45.0, help="seconds; FedAvg's time-out is 5 s more")
    parser.add_argument("--alike", action="store_true", help="let every node hold some of each digit")
    parser.add_argument("--folder", type=Path, help="where keys and logs go; a temporary folder by default")
    options = parser.parse_args()
    if options.rounds < 1 or not 0 < options.deadline < math.inf:
        parser.error("--rounds is at least 1, and --deadline a number of seconds above 0")
    nodes = [{"seconds-per-layer": seconds} for seconds in (FAST, FAST, SLOW, SLOW)]
    ways: list[tuple[str, str, float, Callable[[str, float], Outcome]]] = [
        ("SALF", "after", options.deadline, salf),
        ("FedAvg", "before", options.deadline + GRACE, fedavg),
    ]
    folder = options.folder or Path(tempfile.mkdtemp(prefix="salf-flower-"))
    outcomes = {}
    for name, app, limit, read in ways:
        with LocalDeployment(folder / app, nodes) as deployment:
            began = time.monotonic()
            log = deployment.run(
                HERE / app,
                timeout=3600,
                num_server_rounds=options.rounds,
                fraction_evaluate=0.0,
                deadline_seconds=limit,
                nodes=NODES,
                by_digit=not options.alike,
            )
            outcomes[name] = read(log, time.monotonic() - began)
            (folder / f"{app}.log").write_text(log)
    print("| | rounds | wall time | a round | accuracy | layers kept | nodes heard per round | rounds with all heard |")
    print("|---|---|---|---|---|---|---|---|")
    for name, found in outcomes.items():
        print(
            f"| {name} | {found.rounds} | {found.seconds:.0f} s | {'at most' if name == 'SALF' else 'on average'} "
            f"{found.per_round:.1f} s | {100 * found.accuracy:.1f} % | {100 * found.kept:.0f} % | {found.heard:.1f} of "
            f"{NODES} | {found.everyone} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
