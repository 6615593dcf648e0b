"""The memory of simulated rounds: many clients in one round, and many that are registered but not asked."""

import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from salf.bench.case import Case, Figure
from salf.bench.rounds import bench_settings
from salf.data import Dataset
from salf.engines import CPU
from salf.experiment import ClientSettings, EvaluateSettings
from salf.models import Cnn, Mlp, Model
from salf.simulation import Simulation

_ROUNDS = 3
_BATCH = 16
_REGISTERED, _ASKED = 100_000, 100
_MIB = 2**20
_STATUS = Path("/proc/self/status")


def memory_cases(device: torch.device) -> list[Case]:
    """Return the cases of a round's and a population's memory; none where a process cannot measure its own."""
    if sys.platform == "win32":
        return []
    many, few = f"{_REGISTERED:,} clients".replace(",", " "), f"{_ASKED}"
    registered = f"{many}, {few} asked: more than if {few} were all"
    whole = "the whole process" if device.type == "cpu" else "what torch allocates on the device"
    measure = partial(_round_memory, device)
    return [
        Case("memory/cnn-1000", f"1000 clients, batch {_BATCH}, CNN: {whole}", 2048, "≤", "MiB", measure),
        Case("memory/registered", registered, 100, "≤", "MiB", _registered_memory, cpu_only=True),
    ]


def largest_memory(clients: int, asked: int, model: Model, side: int, examples: int, device: torch.device = CPU) -> int:
    """Play three rounds in a new process; return the most memory that it held, in bytes.

    Args:
        clients: How many clients are registered.
        asked: How many of them take part in a round.
        model: What they train.
        side: The height and width of an image, in pixels.
        examples: How many random images there are.
        device: Where to compute; on any but the CPU, only torch's memory on the device counts.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_play_rounds, clients, asked, model, side, examples, device).result()


def _play_rounds(clients: int, asked: int, model: Model, side: int, examples: int, device: torch.device) -> int:
    """Play the rounds on random images; return the most memory that was held, in bytes."""
    inputs, labels = torch.randn(examples, 1, side, side), torch.arange(examples) % 10
    dataset = Dataset.from_tensors(inputs, labels, inputs[:_BATCH], labels[:_BATCH])
    client, evaluate = ClientSettings(batch_size=_BATCH, cohort=asked), EvaluateSettings(every=_ROUNDS)
    settings = bench_settings(model, clients, device=device, client=client)
    simulation = Simulation(replace(settings, rounds=_ROUNDS, evaluate=evaluate), dataset=dataset)
    state = simulation.initial_state()
    for _ in range(_ROUNDS):
        state, _record = simulation.play(state)
    return _most_held() if device.type == "cpu" else torch.cuda.max_memory_allocated(device)


def _most_held() -> int:
    """Return the most memory that this process has held, in bytes."""
    if _STATUS.exists():  # Linux's other counter includes the process that started this one
        (line,) = (line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # noqa: PLC0415 - not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def _round_memory(device: torch.device, seconds: float) -> Figure:  # noqa: ARG001 - memory takes no time
    """Measure a round of 1000 clients that all take part."""
    taken = largest_memory(1000, 1000, Cnn(), 28, 1000 * _BATCH, device)
    return Figure(taken / _MIB, {"bytes": taken})


def _registered_memory(seconds: float) -> Figure:  # noqa: ARG001 - memory takes no time
    """Measure how much more memory clients take that are registered but not asked.

    Two processes play the same rounds, one with 100 000 registered clients, the other with the 100 that are asked.
    """
    many, few = (largest_memory(clients, _ASKED, Mlp(), 4, _REGISTERED) for clients in (_REGISTERED, _ASKED))
    return Figure((many - few) / _MIB, {"bytes": many, "against_bytes": few})
