"""Measure the wall time of the documented commands, processes and reports included.

    python benchmarks/durations.py DATA_ROOT

First come the 300 rounds of `mnist-cnn`, tested once, and the rounds alone in a process that is already set up (target:
10 s). Then come ten settings of the paper's MNIST experiment with 3 seeds each, by `salf compare` (target: 360 s):
waiting for all clients, layer-wise updates with 30, 60 and 90 % stragglers, and dropping 90 %, each for both divisions
of the data. Run it on an idle machine.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from salf.experiment import Experiment
from salf.simulation import Simulation

_SEEDS, _ROUNDS = 3, 300
_SETTINGS = {"mnist-cnn": "fedavg,salf,drop", "mnist-cnn-60": "salf", "mnist-cnn-30": "salf"}


def main(root: str) -> None:
    """Run the commands and print a line for each."""
    with tempfile.TemporaryDirectory(prefix="salf-durations-") as folder:
        single = _seconds("run", "mnist-cnn", root, Path(folder) / "run", "--set", "evaluate.every=300")
        print(f"mnist-cnn, 300 rounds, tested once: {single:.1f} s", flush=True)
        print(f"mnist-cnn, 300 rounds without a test, already set up: {_rounds_alone(root):.1f} s", flush=True)
        total, runs = 0.0, 0
        for preset, methods in _SETTINGS.items():
            for name in (preset, preset.replace("mnist-cnn", "mnist-cnn-shards")):
                options = "--methods", methods, "--seeds", str(_SEEDS)
                taken = _seconds("compare", name, root, Path(folder) / name, *options)
                print(f"{name}, {methods}, {_SEEDS} seeds: {taken:.1f} s", flush=True)
                total, runs = total + taken, runs + _SEEDS * len(methods.split(","))
        print(f"{runs // _SEEDS} settings, {runs} runs: {total:.1f} s")


def _rounds_alone(root: str) -> float:
    """Return the seconds that the rounds of `mnist-cnn` take here, without tests."""
    experiment = Experiment.load(
        "mnist-cnn", **{"data.root": root, "rounds": _ROUNDS + 1, "evaluate.every": _ROUNDS + 1}
    )
    simulation = Simulation(experiment)
    state = simulation.initial_state()
    start = time.perf_counter()
    while state.round < _ROUNDS:
        state, _ = simulation.play(state)
    return time.perf_counter() - start


def _seconds(command: str, preset: str, root: str, out: Path, *options: str) -> float:
    """Return the seconds that one command of salf takes."""
    words = [sys.executable, "-m", "salf", command, preset, "--set", f"data.root={root}", "--out", str(out), *options]
    start = time.perf_counter()
    subprocess.run([*words, "--json"], check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - the words are ours
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1])
