"""Measure whole simulated rounds, and the cost of registered clients outside the cohort.

    python benchmarks/rounds.py [--device cuda]

Examples are random, there is no evaluation, and nine clients in ten are stragglers. Batches have 16 examples, or one in
rounds with a cohort. The script prints milliseconds per round: the median of at least five turns of at least a tenth of
a second. Run it on an idle machine.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

from salf.bench.case import timed
from salf.bench.rounds import SUBJECTS, RoundBench
from salf.data import Dataset
from salf.devices import UniformDepthDevices
from salf.engines import find_device, title_of
from salf.experiment import ClientSettings, DataSettings, EvaluateSettings, Experiment
from salf.models import Mlp
from salf.simulation import Simulation

_TURN_SECONDS, _SECONDS = 0.1, 3.0
_COHORT, _TESTED, _NEVER = 100, 16, 10**6
_LARGE = ("vgg11", "residual", "transformer")
_ROUNDS = [*((name, clients) for name in ("mlp", "cnn") for clients in (30, 1000)), *((name, 30) for name in _LARGE)]


def main() -> None:
    """Print a line for each kind of round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    device = find_device(parser.parse_args().device)
    print(f"{title_of(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, clients in _ROUNDS:
        bench = RoundBench(replace(SUBJECTS[f"{name}-30"], clients=clients), device=device)
        print(f"{name}, {clients} clients: {_milliseconds(bench.play, device):.2f}", flush=True)
    for registered in (_COHORT, 1000 * _COHORT):
        taken = _milliseconds(_rounds_of(registered, device), device)
        print(f"mlp, {_COHORT} of {registered} clients: {taken:.2f}", flush=True)


def _milliseconds(play: Callable[[], None], device: torch.device) -> float:
    """Return the median duration of a round."""
    play()
    often = max(1, math.ceil(_TURN_SECONDS / timed(play, device=device)))
    turns: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(turns) < 5 or time.perf_counter() < end:
        turns.append(timed(play, often, device))
    return 1000 * median(turns)


def _rounds_of(registered: int, device: torch.device) -> Callable[[], None]:
    """Return a function that plays a round with a cohort; each client has one example."""
    examples = registered
    inputs, labels = torch.randn(examples, 1, 4, 4), torch.arange(examples) % 10
    experiment = Experiment(
        name="registered",
        rounds=_NEVER,
        device=str(device),
        data=DataSettings(name="tensors", clients=registered),
        model=Mlp(),
        client=ClientSettings(batch_size=1, cohort=_COHORT),
        devices=UniformDepthDevices(),
        evaluate=EvaluateSettings(every=_NEVER),
    )
    dataset = Dataset.from_tensors(inputs, labels, inputs[:_TESTED], labels[:_TESTED])
    simulation = Simulation(experiment, dataset=dataset)
    state = simulation.initial_state()

    def play() -> None:
        nonlocal state
        state, _ = simulation.play(state)

    return play


if __name__ == "__main__":
    main()
