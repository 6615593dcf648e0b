"""The time and memory that it takes to aggregate large updates as they arrive."""

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from salf.aggregation import Aggregated, Aggregation, Corrected
from salf.bench.case import Case, Figure, time_in_turn
from salf.layers import Layer, Layers
from salf.update import Update

_UPDATES = 100
_LAYERS, _WIDTH = 11, 1000


def aggregation_cases(device: torch.device) -> list[Case]:
    """Return the cases of an aggregation's speed and memory, with state and updates on a device."""
    speed, memory = partial(_aggregation_speed, device), partial(_aggregation_memory, device)
    size = f"{_UPDATES} updates of {_LAYERS * _WIDTH**2 // 10**6} M parameters"
    return [
        Case("aggregate/speed", f"copying {size}, against aggregating them", 0.5, "≥", "×", speed),
        Case("aggregate/memory", f"largest memory while aggregating {size}, against the model", 4, "≤", "×", memory),
    ]


def _aggregation_speed(device: torch.device, seconds: float) -> Figure:
    """Compare with copying the same bytes into memory that exists."""
    parts = _parts(device)
    update = parts[-1]
    room = {name: torch.empty_like(value) for name, value in update.deltas.items()}

    def copy_all() -> None:
        for _ in range(_UPDATES):
            for name, value in update.deltas.items():
                room[name].copy_(value)

    return time_in_turn(copy_all, partial(_aggregate, *parts, _UPDATES), seconds, device)


def _aggregation_memory(device: torch.device, seconds: float) -> Figure:  # noqa: ARG001 - memory takes no time
    """Measure the most memory that torch holds: for the aggregation, the state that it starts from, and one update."""
    parts = _parts(device)
    model_bytes = sum(value.nbytes for value in parts[0].values())
    aggregate = partial(_aggregate, *parts, _UPDATES // 10)
    highest = _most_allocated(aggregate) if device.type == "cpu" else _most_allocated_on(aggregate, device)
    return Figure((highest + 2 * model_bytes) / model_bytes, {"model_bytes": model_bytes, "allocated_bytes": highest})


def _aggregate(state: dict[str, Tensor], layers: Layers, update: Update, times: int) -> Aggregated:
    """Aggregate one update again and again.

    Args:
        state: The state that the aggregation starts from.
        layers: The layers of the model.
        update: What every client sends.
        times: How many clients there are.
    """
    running = Aggregation(state, layers, Corrected())
    for _ in range(times):
        running.add(update)
    return running.finish(times)


def _most_allocated(act: Callable[[], object]) -> int:
    """Return the most bytes on the CPU that torch holds during a call, of those it allocates in it.

    Torch's profiler reports every allocation and release.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler writes to stderr when it starts and stops
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = act()
    held = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    del result
    return highest


def _most_allocated_on(act: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes on a CUDA device that torch allocates during a call."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    act()
    return torch.cuda.max_memory_allocated(device) - before


def _parts(device: torch.device) -> tuple[dict[str, Tensor], Layers, Update]:
    """Return a model's state, its layers and a client's update, all random.

    The model has 11 layers of one million parameters each.
    """
    names = [f"layer{number}" for number in range(_LAYERS)]
    state = {f"{name}.weight": torch.randn(_WIDTH, _WIDTH, device=device) for name in names}
    layers = Layers(tuple(Layer(name, (f"{name}.weight",)) for name in names))
    return state, layers, Update({name: torch.randn_like(value) for name, value in state.items()}, 1, 1)
