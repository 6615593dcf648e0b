"""How long whole simulated rounds take, and whether registered clients that are not asked cost time.

    python benchmarks/rounds.py [--device cuda]

Random examples, no evaluation, nine clients in ten are stragglers; batches of 16, and of one example where more clients
are registered than are asked. Printed are milliseconds per round: the median of at least five turns of at least a tenth
of a second. Run it on an idle machine.
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
from salf.engines.accelerator import find_device, title_of
from salf.experiment.experiment import ClientSettings, DataSettings, EvaluateSettings, Experiment
from salf.models import Mlp
from salf.simulation.simulator import Simulation

_TURN_SECONDS, _SECONDS = 0.1, 3.0
_ASKED, _TESTED, _NEVER = 100, 16, 10**6
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
    for registered in (_ASKED, 1000 * _ASKED):
        taken = _milliseconds(_rounds_of(registered, device), device)
        print(f"mlp, {_ASKED} clients asked of {registered}: {taken:.2f}", flush=True)


def _milliseconds(play: Callable[[], None], device: torch.device) -> float:
    play()
    often = max(1, math.ceil(_TURN_SECONDS / timed(play, device=device)))
    turns: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(turns) < 5 or time.perf_counter() < end:
        turns.append(timed(play, often, device))
    return 1000 * median(turns)


def _rounds_of(registered: int, device: torch.device) -> Callable[[], None]:
    """Return what plays a round in which some of so many clients are asked; each has one example of 4 × 4 pixels."""
    examples = registered
    inputs, labels = torch.randn(examples, 1, 4, 4), torch.arange(examples) % 10
    experiment = Experiment(
        name="registered",
        rounds=_NEVER,
        device=str(device),
        data=DataSettings(name="tensors", clients=registered),
        model=Mlp(),
        client=ClientSettings(batch_size=1, cohort=_ASKED),
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
