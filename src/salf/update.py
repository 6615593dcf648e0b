"""What travels from a client to the server: the layers it finished, and proof that they may be aggregated."""

import cmath
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from salf.errors import InvalidSetting, InvalidUpdate, check_type
from salf.layers import Layer, Layers

_FORMAT = "salf-update-1"
# Floats that torch can sum up; no model's parameters are of shorter ones.
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_MOST = 2**53  # a count beyond it is no number of steps or examples, and no longer exact as a weight


@dataclass(frozen=True, repr=False)
class Update:
    """One client's partial update: what it conveys of one round.

    `deltas` maps a parameter's name to the local minus the global weights; a parameter that was not reached is absent,
    never zero. `steps` says how many optimizer steps each layer received, by layer name, or as one number for every
    conveyed layer (they differ by at most one between the layers of a client). `num_examples` is the size of the
    client's data set. `buffers` holds the values, not the differences, of the buffers of the conveyed layers. Raises
    `InvalidSetting` where `deltas` or `buffers` is no mapping; all else is `check_update`'s matter.

    >>> update = Update({"head.weight": torch.zeros(2, 3)}, steps=1, num_examples=50)
    >>> sorted(update.deltas), update.steps_of("head")
    (['head.weight'], 1)
    """

    deltas: Mapping[str, Tensor]
    steps: int | Mapping[str, int]
    num_examples: int
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("deltas", "buffers"):
            check_type(name, getattr(self, name), Mapping, "a mapping from names to tensors")
        for name in ("deltas", "steps", "buffers"):
            value = getattr(self, name)
            if isinstance(value, Mapping) and not isinstance(value, MappingProxyType):  # which is as good as a copy
                object.__setattr__(self, name, MappingProxyType(dict(value)))

    def __repr__(self) -> str:
        # What is no tensor is `check_update`'s matter.
        size = sum(getattr(value, "nbytes", 0) for value in (*self.deltas.values(), *self.buffers.values()))
        steps = dict(self.steps) if isinstance(self.steps, Mapping) else self.steps
        return (
            f"Update({len(self.deltas)} parameters, {len(self.buffers)} buffers, {size} bytes, "
            f"steps={steps}, num_examples={self.num_examples})"
        )

    def __reduce__(self) -> tuple[object, ...]:
        steps = dict(self.steps) if isinstance(self.steps, Mapping) else self.steps
        return (Update, (dict(self.deltas), steps, self.num_examples, dict(self.buffers)))

    def steps_of(self, layer: str) -> int:
        """Return how many optimizer steps the layer called `layer` received; 0 if it was not conveyed."""
        return self.steps.get(layer, 0) if isinstance(self.steps, Mapping) else self.steps

    def conveys(self, layer: Layer) -> bool:
        """Say whether every parameter of `layer` is present."""
        return all(name in self.deltas for name in layer.parameters)

    def to_bytes(self) -> bytes:
        """Serialise without loss in the safetensors format. Raises `InvalidSetting` for values that are no tensors.

        >>> update = Update({"head.bias": torch.tensor([0.5, -1.0])}, steps={"head": 2}, num_examples=7)
        >>> again = Update.from_bytes(update.to_bytes())
        >>> torch.equal(again.deltas["head.bias"], update.deltas["head.bias"]), again.steps["head"], again.num_examples
        (True, 2, 7)
        """
        tensors = {f"delta/{name}": _plain(name, tensor) for name, tensor in self.deltas.items()}
        tensors |= {f"buffer/{name}": _plain(name, tensor) for name, tensor in self.buffers.items()}
        steps = dict(self.steps) if isinstance(self.steps, Mapping) else self.steps
        header = {"format": _FORMAT, "steps": steps, "num_examples": self.num_examples}
        # A single entry: safetensors writes several in an order of its own, another in each process.
        return save_tensors(tensors, metadata={"salf": json.dumps(header, sort_keys=True)})

    @classmethod
    def from_bytes(cls, payload: bytes) -> "Update":
        """Read what `to_bytes` wrote. Raises `InvalidUpdate` for anything else; values are `check_update`'s matter."""
        try:
            tensors = load_tensors(payload)
            metadata = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])["__metadata__"]
            header = json.loads(metadata["salf"])
            if header["format"] != _FORMAT:
                raise InvalidUpdate("not an update", [f"its format is '{header['format']}', not '{_FORMAT}'"])
            steps, num_examples = header["steps"], header["num_examples"]
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InvalidUpdate(
                "not an update", [f"the bytes are damaged ({type(error).__name__}: {error})"]
            ) from error
        parts: dict[str, dict[str, Tensor]] = {"delta": {}, "buffer": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind not in parts:
                raise InvalidUpdate("not an update", [f"it holds '{name}', neither a delta nor a buffer"])
            parts[kind][rest] = tensor
        return cls(parts["delta"], steps, num_examples, parts["buffer"])


def check_update(update: Update, layers: Layers, state: Mapping[str, Tensor]) -> None:
    """Raise `InvalidUpdate`, listing every problem, unless `update` may be aggregated into `state`.

    Checked are names, shapes, types, that every value is finite, that each layer is conveyed whole or not at all, the
    number of examples (1 to 2^53) and of steps (the same in a conveyed layer; at most one apart between layers).
    Raises `InvalidSetting` where the three are not what they should be.
    """
    check_type("update", update, Update, "a salf.Update")
    check_type("layers", layers, Layers, "the model's layers, as find_layers returns them")
    check_type("state", state, Mapping, "the model's state dict")
    _check(update, layers, state)


def check_names(update: Update, layers: Layers) -> None:
    """Raise `InvalidUpdate` as `check_update` does, but without looking at the tensors themselves."""
    _check(update, layers, None)


def _check(update: Update, layers: Layers, state: Mapping[str, Tensor] | None) -> None:
    problems = [*_count_problems(update, layers), *_tensor_problems(update, layers, state)]
    if problems:
        raise InvalidUpdate("this update cannot be aggregated", problems)


def _count_problems(update: Update, layers: Layers) -> Iterator[str]:
    if not _is_count(update.num_examples):
        yield f"num_examples is {update.num_examples!r}, not a whole number from 1 to 2^53"
    if isinstance(update.steps, Mapping):
        for name in update.steps:
            if name not in layers.names:
                yield f"steps are given for '{name}', which is no layer of this model"
    steps = {layer.name: update.steps_of(layer.name) for layer in layers if update.conveys(layer)}
    wrong = {name: count for name, count in steps.items() if not _is_count(count)}
    for name, count in wrong.items():
        yield f"layer '{name}' is conveyed after {count!r} steps, not a whole number from 1 to 2^53"
    if steps and not wrong and max(steps.values()) - min(steps.values()) > 1:
        yield f"steps differ by more than one between layers ({min(steps.values())} to {max(steps.values())})"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST


def _tensor_problems(update: Update, layers: Layers, state: Mapping[str, Tensor] | None) -> Iterator[str]:
    parameters = {name for layer in layers for name in layer.parameters}
    buffers = {name: layer for layer in layers for name in layer.buffers}
    finite = state is not None and _is_finite_there(update)
    for name in update.deltas:
        if name not in parameters:
            yield f"'{name}' is no trainable parameter of this model"
        elif state is not None:
            yield from _value_problems(name, update.deltas[name], state, finite=finite)
    for name in update.buffers:
        if name not in buffers:
            yield f"'{name}' is no buffer of a layer of this model"
        elif not update.conveys(buffers[name]):
            yield f"buffer '{name}' comes without its layer '{buffers[name].name}'"
        elif state is not None:
            yield from _value_problems(name, update.buffers[name], state, finite=finite)
    yield from _half_layers(update, layers)


def _half_layers(update: Update, layers: Layers) -> Iterator[str]:
    for layer in layers:
        for names, conveyed, kind in (
            (layer.parameters, update.deltas, "layer"),
            (layer.buffers, update.buffers, "buffers of layer"),
        ):
            missing = [name for name in names if name not in conveyed]
            if missing and len(missing) < len(names):
                yield f"half of {kind} '{layer.name}' is missing ({', '.join(missing)})"


def _value_problems(name: str, value: object, state: Mapping[str, Tensor], *, finite: bool) -> Iterator[str]:
    if not isinstance(value, Tensor):
        yield f"'{name}' is a {type(value).__name__}, not a tensor"
        return
    if value.layout is not torch.strided or value.is_meta:
        yield f"'{name}' is stored as {'meta' if value.is_meta else value.layout}, not as a dense tensor"
        return
    if name not in state:
        yield f"the state lacks '{name}', which its layers name"
        return
    expected = state[name]
    if value.shape != expected.shape:
        yield f"'{name}' has shape {tuple(value.shape)}, not {tuple(expected.shape)}"
    if value.dtype != expected.dtype:
        yield f"'{name}' has type {value.dtype}, not {expected.dtype}"
    if not finite and not is_finite(value):
        yield f"'{name}' holds values that are not finite"


def _is_finite_there(update: Update) -> bool:
    """Say whether one accelerator holds the whole update, and all of it is finite: one look, not one for each."""
    tensors = [*update.deltas.values(), *update.buffers.values()]
    if not all(_is_there(tensor) for tensor in tensors):
        return False
    return len({tensor.device for tensor in tensors}) == 1 and all_finite(tensors)


def _is_there(value: object) -> bool:
    return isinstance(value, Tensor) and not (value.is_cpu or value.is_meta) and value.layout is torch.strided


def is_finite(value: Tensor) -> bool:
    """Say whether no value of a tensor is infinite or NaN."""
    # Torch cannot look into floats of one byte; no model's parameters have such a type, which is a problem of its own.
    if not (value.is_floating_point() or value.is_complex()) or value.dtype.itemsize == 1:
        return True
    # One sum finds every NaN and infinity in a single pass; only where it overflows must each value be looked at. Torch
    # cannot sum up complex numbers of half precision.
    summed = value.dtype is not torch.complex32 and _has_finite_sum(value)
    return summed or bool(torch.isfinite(value).all())


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Say whether no value of several tensors is infinite or NaN."""
    floats = [tensor for tensor in tensors if tensor.dtype in _FLOATS]
    if floats and not _have_finite_sums(floats):  # only where a sum overflows must each value be looked at
        return all(map(is_finite, tensors))
    return len(floats) == len(tensors) or all(map(is_finite, (own for own in tensors if own.dtype not in _FLOATS)))


def _has_finite_sum(value: Tensor) -> bool:
    return cmath.isfinite(value.sum().item())


def _have_finite_sums(tensors: Sequence[Tensor]) -> bool:
    if all(tensor.is_cpu for tensor in tensors):
        return all(map(_has_finite_sum, tensors))
    for device in {tensor.device for tensor in tensors}:
        # Every look at a number waits for an accelerator: one for all that it holds.
        norms = torch._foreach_norm([tensor for tensor in tensors if tensor.device == device])  # noqa: SLF001 - torch's optimizers are built on it
        if not torch.stack([*norms]).isfinite().all():
            return False
    return True


def _plain(name: str, tensor: Tensor) -> Tensor:
    """Copy to what safetensors stores: dense, contiguous, and sharing memory with nothing."""
    check_type(f"'{name}'", tensor, Tensor, "a tensor")
    if tensor.is_meta or tensor.layout is not torch.strided:
        raise InvalidSetting(f"'{name}' is on {tensor.device} and {tensor.layout}, not a dense tensor with values")
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
