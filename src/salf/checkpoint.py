"""Snapshots of a run that are either whole or not there, whenever the process or the machine dies."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from salf.aggregation import Remembered
from salf.errors import RunFolderError
from salf.reach import ObservedReach
from salf.simulation import ServerState

_FORMAT = "salf-checkpoint-1"


def write_atomically(path: Path, payload: bytes) -> None:
    """Write a file so that a reader, or a later run after a crash, finds the old content or the new, never half of it.

    Raises `RunFolderError` when it cannot be written; the old content stays.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def save_checkpoint(path: Path, state: ServerState) -> None:
    """Write all of `state` to one file, atomically."""
    write_atomically(path, save_tensors(dict(_flatten(state)), metadata={"format": _FORMAT, "state": _describe(state)}))


def load_checkpoint(path: Path) -> ServerState:
    """Read what `save_checkpoint` wrote. Raises `RunFolderError` for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise RunFolderError(f"{path} is not a checkpoint of this version of salf; start the run anew")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        return _unflatten(tensors, json.loads(metadata["state"]))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"the checkpoint {path} is damaged ({error}); start the run anew") from error


def plain_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy to tensors that share no memory, as safetensors wants them (tied weights share it)."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
    }


def _describe(state: ServerState) -> str:
    """Put what is not a tensor into JSON, which gives every float back to the last bit."""
    memory = {
        client: {layer: [last.weight, last.steps] for layer, last in layers.items()}
        for client, layers in state.memory.items()
    }
    return json.dumps({"round": state.round, "time_s": state.time_s, "memory": memory}, sort_keys=True)


def _flatten(state: ServerState) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in plain_tensors(state.weights).items():
        yield f"weights/{name}", tensor
    for name, array in state.observed.to_arrays().items():
        yield f"observed/{name}", torch.from_numpy(array)
    for client, layers in state.memory.items():
        for layer, last in layers.items():
            for name, tensor in plain_tensors(last.deltas).items():
                yield f"memory/{client}/{layer}/{name}", tensor


def _unflatten(tensors: Mapping[str, Tensor], description: dict[str, Any]) -> ServerState:
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "observed": {}, "memory": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        parts[kind][rest] = tensor
    memory: dict[int, dict[str, Remembered]] = {}
    for client, layers in description["memory"].items():
        for layer, (weight, steps) in layers.items():
            prefix = f"{client}/{layer}/"
            deltas = {
                name.removeprefix(prefix): tensor for name, tensor in parts["memory"].items() if name.startswith(prefix)
            }
            memory.setdefault(int(client), {})[layer] = Remembered(deltas, weight, steps)
    observed = ObservedReach.from_arrays({name: tensor.numpy() for name, tensor in parts["observed"].items()})
    return ServerState(description["round"], description["time_s"], parts["weights"], observed, memory)
