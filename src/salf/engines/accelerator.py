"""The device that computes: the CPU, or a CUDA device with its own clock and random numbers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from salf.errors import InvalidSetting

CPU = torch.device("cpu")
DEVICE_NAMES = ("cpu", "cuda", "cuda:N")
# An accelerator has memory to spare and is fast in few large passes: engines use this many times as much there.
ACCELERATOR_MEMORY = 8


def is_device_name(name: str) -> bool:
    """Say whether a device of this name can compute, perhaps on another machine.

    >>> [is_device_name(name) for name in ("cpu", "cuda", "cuda:1", "meta", "cuda:x")]
    [True, True, True, False, False]
    """
    return re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]*))?", name) is not None


def find_device(name: str) -> torch.device:
    """Return the device of this name. Raises `InvalidSetting` unless this machine has it.

    >>> find_device("cpu")
    device(type='cpu')
    """
    if not is_device_name(name):
        raise InvalidSetting(f"device is '{name}'; choose one of {', '.join(DEVICE_NAMES)}")
    kind, _, number = name.partition(":")
    if kind == "cpu":
        return CPU
    if not torch.cuda.is_available():
        raise InvalidSetting(
            f"device is '{name}', but torch finds no CUDA device here; choose 'cpu', or install torch for CUDA"
        )
    count = torch.cuda.device_count()
    place = int(number) if number else torch.cuda.current_device()
    if place >= count:
        raise InvalidSetting(
            f"device is '{name}', but the CUDA devices here are numbered from 0 to {count - 1}; choose one of those"
        )
    return torch.device("cuda", place)


def title_of(device: torch.device) -> str:
    """Return the name of a device's model, or "cpu".

    >>> title_of(CPU)
    'cpu'
    """
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished all queued work; the CPU always has."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)


@contextmanager
def fork_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Restore the states of torch's generators, the CPU's and the device's, after the context.

    With a `seed` both start from it within the context.

    >>> with fork_rng(CPU, seed=1):
    ...     first = torch.rand(1)
    >>> with fork_rng(CPU, seed=1):
    ...     bool(first == torch.rand(1))
    True
    """
    with torch.random.fork_rng(devices=_numbers(device)):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            for number in _numbers(device):
                torch.cuda.default_generators[number].manual_seed(seed)
        yield


def draw_states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's generators, the CPU's and the device's; every draw changes them."""
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, _numbers(device))]


def _numbers(device: torch.device) -> list[int]:
    """Return the number of a CUDA device; an empty list for the CPU."""
    return [] if device.type == "cpu" else [device.index]
