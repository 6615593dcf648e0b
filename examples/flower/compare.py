"""SALF beside Flower's own FedAvg with a time-out, in a deployment on this machine: two nodes of four are slow.

    python examples/flower/compare.py [--rounds 20] [--deadline 24] [--folder DIR]

It starts a SuperLink and four SuperNodes with TLS and node authentication, runs the app of `after` and then that of
`before`, whose time-out is the same, and prints what each made of it. Every layer of a slow node takes five times as
long, forwards and backwards, as one of a fast node.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from federation import HERE, Federation

FAST, SLOW = 0.04, 0.2  # seconds for which a node's layer keeps it waiting
LAYERS = 4


@dataclass(frozen=True)
class Outcome:
    """What a run came to; `kept` is the share of the asked nodes' layers that entered the model."""

    rounds: int
    seconds: float
    accuracy: float
    kept: float
    longest: float
    all_in_last_layer: float


def salf(log: str, seconds: float) -> Outcome:
    """Read the outcome of a run under SALF from its log, which has each round's record."""
    records = [json.loads(line) for line in re.findall(r"└──> (\{.*\})", log)]
    depths = [sum(depth * count for depth, count in enumerate(record["depths"])) for record in records]
    kept = sum(depths) / sum(LAYERS * record["clients"] for record in records)
    everyone = sum(record["contributors"][-1] == record["clients"] for record in records) / len(records)
    return Outcome(len(records), seconds, accuracy(log), kept, max(r["seconds"] for r in records), everyone)


def fedavg(log: str, seconds: float) -> Outcome:
    """Read the outcome of a run under FedAvg from its log, which says how many results came in time."""
    received = [int(count) for count in re.findall(r"aggregate_train: Received (\d+) results", log)]
    rounds = len(re.findall(r"\[ROUND ", log))
    everyone = sum(count == 4 for count in received) / rounds
    return Outcome(rounds, seconds, accuracy(log), sum(received) / (4 * rounds), seconds / rounds, everyone)


def accuracy(log: str) -> float:
    """Return the last accuracy that a run has printed."""
    return float(re.findall(r"accuracy ([0-9.]+)", log)[-1])


def main() -> int:
    """Run both apps and print the comparison; return 1 if a run left no result."""
    parser = argparse.ArgumentParser(description="SALF beside Flower's FedAvg with a time-out, two nodes of four slow")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--deadline", type=float, default=24.0, help="seconds, for SALF and as FedAvg's time-out")
    parser.add_argument("--folder", type=Path, help="where keys and logs go; a temporary folder by default")
    options = parser.parse_args()
    nodes = [{"seconds-per-layer": seconds} for seconds in (FAST, FAST, SLOW, SLOW)]
    ways: list[tuple[str, str, Callable[[str, float], Outcome]]] = [
        ("SALF", "after", salf),
        ("FedAvg, time-out", "before", fedavg),
    ]
    folder = options.folder or Path(tempfile.mkdtemp(prefix="salf-flower-"))
    outcomes = {}
    for name, app, read in ways:
        with Federation(folder / app, nodes) as federation:
            began = time.monotonic()
            log = federation.run(
                HERE / app,
                timeout=3600,
                num_server_rounds=options.rounds,
                deadline_seconds=options.deadline,
                nodes=len(nodes),
            )
            outcomes[name] = read(log, time.monotonic() - began)
            (folder / f"{app}.log").write_text(log)
    print("| | rounds | wall time | longest round | accuracy | layers kept | rounds in which all four counted |")
    print("|---|---|---|---|---|---|---|")
    for name, found in outcomes.items():
        longest = f"{found.longest:.1f} s" if name == "SALF" else f"{found.longest:.1f} s (mean)"
        print(
            f"| {name} | {found.rounds} | {found.seconds:.0f} s | {longest} | {100 * found.accuracy:.1f} % | "
            f"{100 * found.kept:.0f} % | {100 * found.all_in_last_layer:.0f} % |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
