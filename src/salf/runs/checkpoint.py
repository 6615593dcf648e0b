"""Checkpoints of a run."""

import json
from collections.abc import Iterator, Mapping
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
from salf.runs.atomic import write_atomically
from salf.simulation import ActiveJob, ActiveJobs, ServerState

_FORMAT = "salf-checkpoint-4"


@dataclass(frozen=True)
class Attachment:
    """What else must survive with a state: tensors, and `notes` that JSON can hold."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(path: Path, state: ServerState, attachment: Attachment | None = None) -> None:
    """Write all of `state`, and the attachment, to one file, atomically."""
    attached = Attachment() if attachment is None else attachment
    tensors = dict(_flatten(state))
    tensors |= {f"attached/{name}": tensor for name, tensor in plain_tensors(attached.tensors).items()}
    # A single entry: safetensors writes several in an order of its own, another in each process.
    write_atomically(path, save_tensors(tensors, metadata={"salf": _describe(state, attached.notes)}))


def load_checkpoint(path: Path) -> ServerState:
    """Read what `save_checkpoint` wrote. Raises `RunFolderError` for anything else."""
    return load_attached(path)[0]


def load_attached(path: Path) -> tuple[ServerState, Attachment]:
    """Read what `save_checkpoint` wrote, with its attachment. Raises `RunFolderError` for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get("salf", "{}"))
            if description.get("format") != _FORMAT:
                raise RunFolderError(
                    f"{path} is not a checkpoint of this version of salf; start the run anew elsewhere"
                )
            # In memory of their own: products of matrices are rounded otherwise where these do not begin as torch's do.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        return _unflatten(tensors, description), Attachment(_under("attached/", tensors), description.get("notes", {}))
    except OSError as error:
        raise RunFolderError(f"cannot read the checkpoint {path}: {error.strerror or error}; mend that") from error
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunFolderError(f"the checkpoint {path} is damaged ({error}); start the run anew elsewhere") from error


def plain_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy to tensors that share no memory, as safetensors wants them (tied weights share it)."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
    }


def _describe(state: ServerState, notes: Mapping[str, Any]) -> str:
    """Put what is not a tensor into JSON, which gives every float back to the last bit."""
    memory = {
        client: {layer: [last.weight, last.steps, list(last.deltas), last.turn] for layer, last in layers.items()}
        for client, layers in state.memory.items()
    }
    described = {"format": _FORMAT, "round": state.round, "time_s": state.time_s, "memory": memory}
    if state.active_jobs is not None:
        described["flights"] = _describe_flights(state.active_jobs)
    if notes:
        described["notes"] = dict(notes)
    return json.dumps(described, sort_keys=True)


def _describe_flights(active_jobs: ActiveJobs) -> dict[str, object]:
    return {
        "under_way": [asdict(active_job) for active_job in active_jobs.under_way],
        "jobs": dict(active_jobs.begun),
        "version": active_jobs.version,
        "buffer": [active_jobs.buffer.scale, active_jobs.buffer.count],
    }


def _flatten(state: ServerState) -> Iterator[tuple[str, Tensor]]:
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
        yield from _flatten_flights(state.active_jobs)


def _flatten_flights(active_jobs: ActiveJobs) -> Iterator[tuple[str, Tensor]]:
    for version, weights in active_jobs.starts.items():
        for name, tensor in plain_tensors(weights).items():
            yield f"start/{version}/{name}", tensor
    for name, tensor in plain_tensors(active_jobs.buffer.sums).items():
        yield f"buffer/{name}", tensor


def _unflatten(tensors: Mapping[str, Tensor], description: dict[str, Any]) -> ServerState:
    weights, observed = (_under(prefix, tensors) for prefix in ("weights/", "observed/"))
    memory = {
        int(client): {
            layer: Remembered({name: tensors[f"memory/{client}/{name}"] for name in names}, weight, steps, turn)
            for layer, (weight, steps, names, turn) in layers.items()
        }
        for client, layers in description["memory"].items()
    }
    seen = ObservedReach.from_arrays({name: tensor.numpy() for name, tensor in observed.items()})
    speeds = ObservedSpeeds.from_arrays({name: one.numpy() for name, one in _under("speeds/", tensors).items()})
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _under("optimizer/", tensors).items():
        moment, _, parameter = name.partition("/")
        optimizer.setdefault(parameter, {})[moment] = tensor
    active_jobs = _unflatten_flights(tensors, description["flights"]) if "flights" in description else None
    return ServerState(
        int(description["round"]), float(description["time_s"]), weights, seen, memory, optimizer, speeds, active_jobs
    )


def _unflatten_flights(tensors: Mapping[str, Tensor], description: dict[str, Any]) -> ActiveJobs:
    scale, count = description["buffer"]
    under_way = tuple(ActiveJob(**active_job) for active_job in description["under_way"])
    versions = {active_job.version for active_job in under_way if active_job.answers}
    starts = {version: _under(f"start/{version}/", tensors) for version in versions}
    jobs = {int(client): begun for client, begun in description["jobs"].items()}
    return ActiveJobs(under_way, starts, jobs, description["version"], Buffer(_under("buffer/", tensors), scale, count))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
