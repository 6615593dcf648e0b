"""The message from a client to the server: the layers that the client finished, and the checks of this message."""

import cmath
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors, save as save_tensors
from torch import Tensor

from salf.errors import InvalidSetting, InvalidUpdate, check_type
from salf.layers import BufferKind, Layer, Layers, is_unchanged, must_not_change, stays_finite

_FORMAT = "salf-update-1"
# The floating-point types that torch can sum; parameters of a model have no shorter type.
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_MOST = 2**53  # beyond it, a count is not exact as a floating-point weight
_COUNTED = ("passes", "examples")  # what an update may count beside steps
_COUNT = "an integer from 1 to 2^53"
_NOT_BYTES = "these bytes are not an update; send the result of Update.to_bytes()"


@dataclass(frozen=True, repr=False)
class Update:
    """One client's partial update of one round.

    A layer that the client did not reach is absent, never zero. The constructor copies the mappings, not the tensors.
    `check_update` validates everything that the constructor does not.

    Attributes:
        deltas: Maps a parameter's name to its local minus its global weights.
        steps: Maps a layer's name to the number of optimizer steps that it received, or gives one number for every
            layer in the update.
        num_examples: The size of the client's data set, at least 1.
        buffers: Maps a buffer's name to its value (not a difference), for the layers in the update.
        passes: Maps a layer's name to the number of backward passes that it has seen; empty if they were not counted.
        examples: Maps a layer's name to the number of examples in these passes; empty if they were not counted.

    Raises:
        InvalidSetting: `deltas`, `buffers`, `passes` or `examples` is not a mapping.

    >>> update = Update({"head.weight": torch.zeros(2, 3)}, steps=1, num_examples=50)
    >>> sorted(update.deltas), update.steps_of("head")
    (['head.weight'], 1)
    """

    deltas: Mapping[str, Tensor]
    steps: int | Mapping[str, int]
    num_examples: int
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    passes: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("deltas", "buffers"):
            check_type(name, getattr(self, name), Mapping, "a mapping from names to tensors")
        for name in _COUNTED:
            check_type(name, getattr(self, name), Mapping, "a mapping from layer names to numbers")
        for name in ("deltas", "steps", "buffers", *_COUNTED):
            value = getattr(self, name)
            if isinstance(value, Mapping) and not isinstance(value, MappingProxyType):  # already read-only
                object.__setattr__(self, name, MappingProxyType(dict(value)))

    def __repr__(self) -> str:
        # A value may be of any type until `check_update` has run.
        size = sum(getattr(value, "nbytes", 0) for value in (*self.deltas.values(), *self.buffers.values()))
        counted = "".join(f", {name}={counts}" for name, counts in self._plain_counts().items())
        return (
            f"Update({len(self.deltas)} parameters, {len(self.buffers)} buffers, {size} bytes, "
            f"steps={self._plain_steps()}, num_examples={self.num_examples}{counted})"
        )

    def __reduce__(self) -> tuple[object, ...]:
        counts = dict(self.passes), dict(self.examples)
        return (Update, (dict(self.deltas), self._plain_steps(), self.num_examples, dict(self.buffers), *counts))

    def _plain_counts(self) -> dict[str, dict[str, int]]:
        """Return the passes and the examples of the layers, without those that were not counted."""
        return {name: dict(getattr(self, name)) for name in _COUNTED if getattr(self, name)}

    def _plain_steps(self) -> int | dict[str, int]:
        return dict(self.steps) if isinstance(self.steps, Mapping) else self.steps

    def steps_of(self, layer: str) -> int:
        """Return the number of optimizer steps of the layer with this name; 0 if the update lacks it."""
        return self.steps.get(layer, 0) if isinstance(self.steps, Mapping) else self.steps

    def includes(self, layer: Layer) -> bool:
        """Say whether the update includes every parameter of a layer."""
        return all(name in self.deltas for name in layer.parameters)

    def to_bytes(self) -> bytes:
        """Serialize without loss in the safetensors format.

        Raises:
            InvalidSetting: A value is not a dense tensor.

        >>> update = Update({"head.bias": torch.tensor([0.5, -1.0])}, steps={"head": 2}, num_examples=7)
        >>> again = Update.from_bytes(update.to_bytes())
        >>> torch.equal(again.deltas["head.bias"], update.deltas["head.bias"]), again.steps["head"], again.num_examples
        (True, 2, 7)
        """
        tensors = {f"delta/{name}": _dense_copy(name, tensor) for name, tensor in self.deltas.items()}
        tensors |= {f"buffer/{name}": _dense_copy(name, tensor) for name, tensor in self.buffers.items()}
        header = {"format": _FORMAT, "steps": self._plain_steps(), "num_examples": self.num_examples}
        header |= self._plain_counts()
        # One entry only: safetensors writes several in an order that differs between processes.
        return save_tensors(tensors, metadata={"salf": json.dumps(header, sort_keys=True)})

    @classmethod
    def from_bytes(cls, payload: bytes) -> "Update":
        """Read the bytes that `to_bytes` wrote; `check_update` validates the values.

        Raises:
            InvalidUpdate: The bytes are damaged, or have another format.
        """
        try:
            tensors = load_tensors(payload)
            metadata = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])["__metadata__"]
            header = json.loads(metadata["salf"])
            if header["format"] != _FORMAT:
                raise InvalidUpdate(_NOT_BYTES, [f"their format is '{header['format']}', not '{_FORMAT}'"])
            steps, num_examples = header["steps"], header["num_examples"]
            counts = [header.get(name, {}) for name in _COUNTED]
            if not all(isinstance(each, dict) for each in counts):
                raise TypeError(f"{' or '.join(_COUNTED)} is not an object")
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InvalidUpdate(_NOT_BYTES, [f"they are damaged ({type(error).__name__}: {error!s:.200})"]) from error
        parts: dict[str, dict[str, Tensor]] = {"delta": {}, "buffer": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind not in parts:
                raise InvalidUpdate(_NOT_BYTES, [f"they hold '{name}', neither a delta nor a buffer"])
            parts[kind][rest] = tensor
        return cls(parts["delta"], steps, num_examples, parts["buffer"], *counts)


def check_update(update: Update, layers: Layers, state: Mapping[str, Tensor]) -> None:
    """Check that an update may be aggregated into `state`.

    Checked are the names, shapes and types of all tensors (floating-point tensors may have another floating-point type
    than the state's); that every value is finite, or a buffer's unchanged; that each buffer may change that does (see
    `find_layers`); that each layer is whole or absent; that `num_examples` and the `steps` of each layer are integers
    from 1 to 2^53; and the same of `passes` and `examples`, unless these are empty. "local" buffers are ignored.

    Args:
        update: The client's update.
        layers: The model's layers.
        state: The model's state dict, or another mapping from names to tensors of the right shape and type.

    Raises:
        InvalidUpdate: The update cannot be aggregated; the error lists every problem.
        InvalidSetting: An argument has a wrong type.

    >>> from salf.layers import find_layers
    >>> model = torch.nn.Linear(2, 1)
    >>> update = Update({"weight": torch.zeros(3, 1), "bias": torch.zeros(1)}, steps=1, num_examples=8)
    >>> check_update(update, find_layers(model), model.state_dict())
    Traceback (most recent call last):
    salf.errors.InvalidUpdate: this update cannot be aggregated; correct the client that sent it: 'weight' has shape
    (3, 1), not (1, 2)
    """
    check_type("update", update, Update, "a salf.Update")
    check_type("layers", layers, Layers, "the model's layers, as find_layers returns them")
    check_type("state", state, Mapping, "the model's state dict")
    _check_parts(update, layers, state)


def check_names(update: Update, layers: Layers) -> None:
    """Check an update as `check_update` does, except for the tensors themselves."""
    _check_parts(update, layers, None)


def _check_parts(update: Update, layers: Layers, state: Mapping[str, Tensor] | None) -> None:
    problems = [*_count_problems(update, layers), *_tensor_problems(update, layers, state)]
    if problems:
        raise InvalidUpdate("this update cannot be aggregated; correct the client that sent it", problems)


def _count_problems(update: Update, layers: Layers) -> Iterator[str]:
    if not _is_count(update.num_examples):
        yield f"num_examples is {update.num_examples!r:.40}, not {_COUNT}"
    known, sent = set(layers.names), [layer.name for layer in layers if update.includes(layer)]
    for kind in ("steps", *_COUNTED):
        counts = getattr(update, kind)
        if isinstance(counts, Mapping):
            for name in counts:
                if name not in known:
                    yield f"{kind} name '{name}', which is not a layer of this model"
        for name in sent if kind == "steps" or counts else ():
            count = counts.get(name, 0) if isinstance(counts, Mapping) else counts
            if not _is_count(count):
                yield f"layer '{name}' has {count!r:.40} {kind}, not {_COUNT}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST


def _tensor_problems(update: Update, layers: Layers, state: Mapping[str, Tensor] | None) -> Iterator[str]:
    parameters = {name for layer in layers for name in layer.parameters}
    buffers = {name: layer for layer in layers for name in layer.buffers}
    finite = state is not None and _is_finite_on_accelerator(update)
    for name in update.deltas:
        if name not in parameters:
            yield f"'{name}' is not a trainable parameter of this model"
        elif state is not None:
            yield from _value_problems(name, update.deltas[name], state, finite=finite)
    for name in update.buffers:
        if layers.buffer_kinds.get(name) == "local":
            continue
        if name not in buffers:
            yield f"'{name}' is not a buffer of a layer of this model"
        elif not update.includes(buffers[name]):
            yield f"buffer '{name}' is sent without its layer '{buffers[name].name}'"
        elif state is not None:
            kind = layers.kind_of(name, state[name]) if name in state else "statistic"
            if kind == "statistic" or kind == "counter":
                yield from _value_problems(name, update.buffers[name], state, finite=finite, is_buffer=True)
            else:
                yield from _fixed_problems(name, update.buffers[name], state, kind)
    yield from _partial_layers(update, layers)


def _partial_layers(update: Update, layers: Layers) -> Iterator[str]:
    for layer in layers:
        for names, sent, kind in (
            (layer.parameters, update.deltas, "layer"),
            (layer.buffers, update.buffers, "the buffers of layer"),
        ):
            missing = [name for name in names if name not in sent]
            if missing and len(missing) < len(names):
                listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
                yield f"a part of {kind} '{layer.name}' is missing ({listed})"


def _fixed_problems(name: str, value: Tensor, state: Mapping[str, Tensor], kind: BufferKind | None) -> Iterator[str]:
    problems = [*_value_problems(name, value, state, finite=True)]
    yield from problems
    if not problems and not is_unchanged(value, state[name]):
        yield f"buffer '{name}' has changed, {must_not_change(name, kind)}"


def _value_problems(
    name: str, value: object, state: Mapping[str, Tensor], *, finite: bool, is_buffer: bool = False
) -> Iterator[str]:
    if not isinstance(value, Tensor):
        yield f"'{name}' is a {type(value).__name__}, not a tensor"
        return
    if value.layout is not torch.strided or value.is_meta:
        yield f"'{name}' is stored as {'meta' if value.is_meta else value.layout}, not as a dense tensor"
        return
    if name not in state:
        yield f"the state lacks '{name}', which is in the layers"
        return
    expected = state[name]
    if value.shape != expected.shape:
        yield f"'{name}' has shape {tuple(value.shape)}, not {tuple(expected.shape)}"
    if value.dtype != expected.dtype and not {value.dtype, expected.dtype} <= _FLOATS:
        yield f"'{name}' has type {value.dtype}, not {expected.dtype}"
    if not finite and not is_finite(value) and not (is_buffer and stays_finite(value, expected)):
        yield f"'{name}' holds values that are not finite"


def _is_finite_on_accelerator(update: Update) -> bool:
    """Say whether one accelerator holds the whole update and all values are finite, with one synchronization."""
    tensors = [*update.deltas.values(), *update.buffers.values()]
    on_accelerators = all(map(_is_on_accelerator, tensors))
    return on_accelerators and len({tensor.device for tensor in tensors}) == 1 and all_finite(tensors)


def _is_on_accelerator(value: object) -> bool:
    return isinstance(value, Tensor) and not (value.is_cpu or value.is_meta) and value.layout is torch.strided


def is_finite(value: Tensor) -> bool:
    """Say whether no value of a tensor is infinite or NaN.

    >>> is_finite(torch.tensor([1.0, 2.0])), is_finite(torch.tensor([1.0, float("nan")]))
    (True, False)
    """
    # Torch cannot test floats of one byte. `check_update` refuses them by their type.
    if not (value.is_floating_point() or value.is_complex()) or value.dtype.itemsize == 1:
        return True
    # A sum finds every NaN and infinity in one pass. If it overflows, each value is tested. Torch cannot sum complex
    # numbers of half precision.
    summed = value.dtype is not torch.complex32 and _has_finite_sum(value)
    return summed or bool(torch.isfinite(value).all())


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Say whether no value of several tensors is infinite or NaN.

    >>> all_finite([torch.ones(2), torch.tensor([1, 2])])
    True
    """
    floats = [tensor for tensor in tensors if tensor.dtype in _FLOATS]
    if not _have_finite_sums(floats):  # a sum may also overflow
        return all(map(is_finite, tensors))
    return all(is_finite(tensor) for tensor in tensors if tensor.dtype not in _FLOATS)


def _has_finite_sum(value: Tensor) -> bool:
    return cmath.isfinite(value.sum().item())


def _have_finite_sums(tensors: Sequence[Tensor]) -> bool:
    if all(tensor.is_cpu for tensor in tensors):
        return all(map(_has_finite_sum, tensors))
    for device in {tensor.device for tensor in tensors}:
        # Reading a value on an accelerator waits for all queued work, so read one value per device.
        norms = torch._foreach_norm([tensor for tensor in tensors if tensor.device == device])  # noqa: SLF001 - one kernel for all tensors; torch's own optimizers use it
        if not torch.stack([*norms]).isfinite().all():
            return False
    return True


def _dense_copy(name: str, tensor: Tensor) -> Tensor:
    """Return a copy that safetensors can store: dense, contiguous, on the CPU, sharing no memory."""
    check_type(f"'{name}'", tensor, Tensor, "a tensor")
    if tensor.is_meta or tensor.layout is not torch.strided:
        raise InvalidSetting(
            f"'{name}' is a tensor on {tensor.device} with layout {tensor.layout}; pass a dense tensor"
        )
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
