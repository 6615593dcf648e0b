"""Checkpoints: all of a server's state in one file, which gives every number back to the last bit."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from salf.aggregation import Buffer, Remembered
from salf.errors import RunFolderError
from salf.participation import ObservedReach, ObservedSpeeds
from salf.runs.atomic import reason_of, write_atomically
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
    tensors = dict(_flatten(state))
    tensors |= {f"attached/{name}": tensor for name, tensor in plain_tensors(attached.tensors).items()}
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
        return int(metadata["round"]), _observed(tensors)


@contextmanager
def _read(path: Path, prefix: str = "") -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Open a checkpoint; give its metadata and the tensors whose names begin with `prefix`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("salf", "{}"))
            if metadata.get("format") != _FORMAT:
                raise RunFolderError(
                    f"{path} is not a checkpoint of this version of salf; start the run again in another folder"
                )
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - safe_open is no mapping
            # Clones begin where torch aligns memory: elsewhere matrix products are rounded differently.
            tensors = {name: file.get_tensor(name).clone() for name in names}
        yield metadata, tensors
    except OSError as error:
        raise RunFolderError(f"cannot read the checkpoint {path}: {reason_of(error)}; check its permissions") from error
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"the checkpoint {path} is damaged ({error}); start the run again in another folder"
        ) from error


def plain_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy to CPU tensors that share no memory, which safetensors requires (tied weights share it)."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
    }


def _metadata(state: ServerState, notes: Mapping[str, Any]) -> str:
    """Return what is not a tensor, as JSON."""
    memory = {
        client: {layer: [last.weight, last.steps, list(last.deltas), last.turn] for layer, last in layers.items()}
        for client, layers in state.memory.items()
    }
    described = {"format": _FORMAT, "round": state.round, "time_s": state.time_s, "memory": memory}
    if state.active_jobs is not None:
        described["flights"] = _active_jobs_metadata(state.active_jobs)
    if notes:
        described["notes"] = dict(notes)
    return json.dumps(described, sort_keys=True)


def _active_jobs_metadata(active_jobs: ActiveJobs) -> dict[str, object]:
    """Return what JSON holds of the jobs in progress; the names of the keys are those of the file format."""
    return {
        "under_way": [asdict(active_job) for active_job in active_jobs.under_way],
        "jobs": dict(active_jobs.begun),
        "version": active_jobs.version,
        "buffer": [active_jobs.buffer.scale, active_jobs.buffer.count],
    }


def _flatten(state: ServerState) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a state under names that say where they belong."""
    for name, tensor in plain_tensors(state.weights).items():
        yield f"weights/{name}", tensor
    for name, array in state.observed.to_arrays().items():
        yield f"observed/{name}", torch.from_numpy(array)
    for name, values in state.speeds.to_arrays().items():
        yield f"speeds/{name}", torch.from_numpy(values)
    for parameter, moments in state.optimizer.items():
        for moment, tensor in plain_tensors(moments).items():
            yield f"optimizer/{moment}/{parameter}", tensor
    for client, layers in state.memory.items():
        for last in layers.values():
            for name, tensor in plain_tensors(last.deltas).items():
                yield f"memory/{client}/{name}", tensor
    if state.active_jobs is not None:
        yield from _flatten_active_jobs(state.active_jobs)


def _flatten_active_jobs(active_jobs: ActiveJobs) -> Iterator[tuple[str, Tensor]]:
    """Yield the models from which the jobs in progress started, and the sums of the buffer."""
    for version, weights in active_jobs.starts.items():
        for name, tensor in plain_tensors(weights).items():
            yield f"start/{version}/{name}", tensor
    for name, tensor in plain_tensors(active_jobs.buffer.sums).items():
        yield f"buffer/{name}", tensor


def _unflatten(tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> ServerState:
    """Build the state again from what `_flatten` and `_metadata` returned."""
    memory = {
        int(client): {
            layer: Remembered({name: tensors[f"memory/{client}/{name}"] for name in names}, weight, steps, turn)
            for layer, (weight, steps, names, turn) in layers.items()
        }
        for client, layers in metadata["memory"].items()
    }
    speeds = ObservedSpeeds.from_arrays({name: one.numpy() for name, one in _below("speeds/", tensors).items()})
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _below("optimizer/", tensors).items():
        moment, _, parameter = name.partition("/")
        optimizer.setdefault(parameter, {})[moment] = tensor
    active_jobs = _unflatten_active_jobs(tensors, metadata["flights"]) if "flights" in metadata else None
    return ServerState(
        int(metadata["round"]),
        float(metadata["time_s"]),
        _below("weights/", tensors),
        _observed(tensors),
        memory,
        optimizer,
        speeds,
        active_jobs,
    )


def _observed(tensors: Mapping[str, Tensor]) -> ObservedReach:
    """Return how often each client reached each layer."""
    return ObservedReach.from_arrays({name: one.numpy() for name, one in _below("observed/", tensors).items()})


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
