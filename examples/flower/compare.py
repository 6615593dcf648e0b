"""SALF beside Flower's own FedAvg with a time-out, in a deployment on this machine: two nodes of four are slow.

    python examples/flower/compare.py [--rounds 20] [--deadline 45] [--alike] [--folder DIR]

It starts a SuperLink and four SuperNodes with TLS and node authentication, runs the app of `after` and then that of
`before`, whose time-out is the deadline and the grace of SALF's rounds together, and prints what each made of it. Every
layer of a slow node takes five times as long, forwards and backwards, as one of a fast node: an epoch of the 24 batches
takes 13 and 67 seconds, beside the 20 or so that starting four processes takes two processors. By default the deadline
is about half of what a slow node needs. Each node holds a quarter of the examples in the order of their digits, so that
of what the slow ones know the others know hardly anything; with `--alike` all nodes hold some of each digit.
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

FAST, SLOW = 0.07, 0.35  # seconds for which a node's layer keeps it waiting, forwards and again backwards
LAYERS = NODES = 4
GRACE = 5.0  # seconds, as SalfStrategy has it by default


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    `seconds` is its wall time and `per_round` that of a round: the longest under SALF, the mean under FedAvg, whose log
    does not tell more. `kept` is the share of the asked nodes' layers that entered the model, `heard` how many nodes'
    last layer did in a round, on average, and `everyone` in how many rounds it was all nodes'.
    """

    rounds: int
    seconds: float
    per_round: float
    accuracy: float
    kept: float
    heard: float
    everyone: int


def salf(log: str, seconds: float) -> Outcome:
    """Read the outcome of a run under SALF from its log, which has each round's record."""
    records = [json.loads(line) for line in re.findall(r"└──> (\{.*\})", log)]
    depths = [sum(depth * count for depth, count in enumerate(record["depths"])) for record in records]
    kept = sum(depths) / sum(LAYERS * record["clients"] for record in records)
    heard = [record["contributors"][-1] for record in records]
    longest, mean = max(record["seconds"] for record in records), sum(heard) / len(records)
    return Outcome(len(records), seconds, longest, accuracy(log), kept, mean, heard.count(NODES))


def fedavg(log: str, seconds: float) -> Outcome:
    """Read the outcome of a run under FedAvg from its log, which says how many results came in time."""
    received = [int(count) for count in re.findall(r"aggregate_train: Received (\d+) results", log)]
    rounds = len(re.findall(r"\[ROUND ", log))
    mean = sum(received) / rounds
    return Outcome(rounds, seconds, seconds / rounds, accuracy(log), mean / NODES, mean, received.count(NODES))


def accuracy(log: str) -> float:
    """Return the last accuracy that a run has printed."""
    return float(re.findall(r"accuracy ([0-9.]+)", log)[-1])


def main() -> int:
    """Run both apps and print the comparison; return 1 if a run left no result."""
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
        with LocalDeployment(folder / app, nodes) as federation:
            began = time.monotonic()
            log = federation.run(
                HERE / app,
                timeout=3600,
                num_server_rounds=options.rounds,
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
