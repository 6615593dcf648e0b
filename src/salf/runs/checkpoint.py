"""Checkpoints: all of a server's state in one file, which gives every number back to the last bit."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from salf.aggregation import Buffer, Remembered
from salf.errors import RunFolderError
from salf.participation import ObservedReach, ObservedSpeeds
from salf.runs.atomic import ELSEWHERE, reading, write_atomically
from salf.simulation import ActiveJob, ActiveJobs, ServerState

_FORMAT = "salf-checkpoint-4"


@dataclass(frozen=True)
class Attachment:
    """What else is kept with a state.

    Args:
        tensors: Further tensors by name.
        notes: Anything that JSON can hold.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(path: Path, state: ServerState, attachment: Attachment | None = None) -> None:
    """Write a state, and what is attached, to one file, atomically."""
    attached = Attachment() if attachment is None else attachment
    tensors = {
        f"{prefix}/{name}": tensor
        for prefix, group in (*_groups(state), ("attached", attached.tensors))
        for name, tensor in plain_tensors(group).items()
    }
    # One entry: safetensors writes several in an order that differs between processes.
    write_atomically(path, save_tensors(tensors, metadata={"salf": _metadata(state, attached.notes)}))


def load_checkpoint(path: Path) -> tuple[ServerState, Attachment]:
    """Read what `save_checkpoint` wrote.

    Raises:
        RunFolderError: The file cannot be read, is damaged, or was written by another version.
    """
    with _read(path) as (metadata, tensors):
        return _unflatten(tensors, metadata), Attachment(_below("attached/", tensors), metadata.get("notes", {}))


def load_observed(path: Path) -> tuple[int, ObservedReach]:
    """Read from a checkpoint only its round and how often each client reached each layer.

    Raises:
        RunFolderError: As `load_checkpoint` does.
    """
    with _read(path, "observed/") as (metadata, tensors):
        return int(metadata["round"]), ObservedReach.from_arrays(_arrays("observed/", tensors))


@contextmanager
def _read(path: Path, prefix: str = "") -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Open a checkpoint; give its metadata and the tensors whose names begin with `prefix`."""
    with reading(path):
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("salf", "{}"))
            if metadata.get("format") != _FORMAT:
                raise RunFolderError(f"{path} is not a checkpoint of this version of salf; {ELSEWHERE}")
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - safe_open is no mapping
            # Clones begin where torch aligns memory: elsewhere matrix products are rounded differently.
            tensors = {name: file.get_tensor(name).clone() for name in names}
        yield metadata, tensors


def plain_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy to CPU tensors that share no memory, which safetensors requires (tied weights share it)."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
    }


def _metadata(state: ServerState, notes: Mapping[str, Any]) -> str:
    """Return what is not a tensor, as JSON."""
    memory = {
        client: {
            layer: [last.weight, last.steps, list(last.deltas), last.turn, last.examples]
            for layer, last in layers.items()
        }
        for client, layers in state.memory.items()
    }
    described = {"format": _FORMAT, "round": state.round, "time_s": state.time_s, "memory": memory}
    jobs = state.active_jobs
    if jobs is not None:  # the keys are those of the file format
        described["flights"] = {
            "under_way": [asdict(active_job) for active_job in jobs.under_way],
            "jobs": dict(jobs.begun),
            "version": jobs.version,
            "buffer": [jobs.buffer.scale, jobs.buffer.count],
        }
    if notes:
        described["notes"] = dict(notes)
    return json.dumps(described, sort_keys=True)


def _groups(state: ServerState) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield all tensors of a state in groups, each with what the names of its tensors begin with.

    The models from which the jobs in progress started are among them, and the sums of the buffer.
    """
    yield "weights", state.weights
    for prefix, observed in (("observed", state.observed), ("speeds", state.speeds)):
        yield prefix, {name: torch.from_numpy(array) for name, array in observed.to_arrays().items()}
    for parameter, moments in state.optimizer.items():
        yield "optimizer", {f"{moment}/{parameter}": tensor for moment, tensor in moments.items()}
    for client, layers in state.memory.items():
        yield f"memory/{client}", {name: tensor for last in layers.values() for name, tensor in last.deltas.items()}
    if state.active_jobs is not None:
        for version, weights in state.active_jobs.starts.items():
            yield f"start/{version}", weights
        yield "buffer", state.active_jobs.buffer.sums


def _unflatten(tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> ServerState:
    """Build the state again from what `_groups` and `_metadata` returned."""
    memory = {
        int(client): {
            layer: Remembered({name: tensors[f"memory/{client}/{name}"] for name in names}, weight, steps, *rest)
            for layer, (weight, steps, names, *rest) in layers.items()
        }
        for client, layers in metadata["memory"].items()
    }
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _below("optimizer/", tensors).items():
        moment, _, parameter = name.partition("/")
        optimizer.setdefault(parameter, {})[moment] = tensor
    return ServerState(
        round=int(metadata["round"]),
        time_s=float(metadata["time_s"]),
        weights=_below("weights/", tensors),
        observed=ObservedReach.from_arrays(_arrays("observed/", tensors)),
        memory=memory,
        optimizer=optimizer,
        speeds=ObservedSpeeds.from_arrays(_arrays("speeds/", tensors)),
        active_jobs=_unflatten_active_jobs(tensors, metadata["flights"]) if "flights" in metadata else None,
    )


def _unflatten_active_jobs(tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> ActiveJobs:
    """Build the jobs in progress again; only jobs that answer need their model."""
    scale, count = metadata["buffer"]
    under_way = tuple(ActiveJob(**active_job) for active_job in metadata["under_way"])
    versions = {active_job.version for active_job in under_way if active_job.answers}
    starts = {version: _below(f"start/{version}/", tensors) for version in versions}
    jobs = {int(client): begun for client, begun in metadata["jobs"].items()}
    return ActiveJobs(under_way, starts, jobs, metadata["version"], Buffer(_below("buffer/", tensors), scale, count))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _arrays(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return as numpy arrays the tensors whose names begin with `prefix`, under the rest of their names."""
    return {name: tensor.numpy() for name, tensor in _below(prefix, tensors).items()}
