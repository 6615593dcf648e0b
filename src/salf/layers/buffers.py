"""What may become of a buffer when clients' models are combined: its kind."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from salf.errors import InvalidSetting, check_type, shown

BufferKind = Literal["statistic", "counter", "constant", "local"]
_KINDS = get_args(BufferKind)
_LISTED = "'statistic', 'counter', 'constant' or 'local'"
# The buffers of fake quantization belong together: a mean of scales does not fit any client's zero point.
_QUANTIZATION = ("torch.ao.quantization.fake_quantize", "torch.ao.quantization.observer")


def is_continuous(tensor: Tensor) -> bool:
    """Say whether a tensor can be averaged: whether it does not hold whole numbers or truth values."""
    return tensor.is_floating_point() or tensor.is_complex()


def default_kind(name: str, tensor: Tensor) -> BufferKind | None:
    """Return the kind of a buffer whose kind is not stated; None if an update must not change it.

    >>> import torch
    >>> default_kind("bn.num_batches_tracked", torch.tensor(0)), default_kind("queue_ptr", torch.tensor(0))
    ('counter', None)
    """
    if is_continuous(tensor):
        return "statistic"
    return "counter" if name.rpartition(".")[2] == "num_batches_tracked" else None


def check_kinds(kinds: object) -> None:
    """Raise `InvalidSetting` unless `kinds` is a mapping to kinds."""
    check_type("buffer_kinds", kinds, Mapping, "a mapping from buffers' names to their kinds")
    for name, kind in kinds.items() if isinstance(kinds, Mapping) else ():
        if not isinstance(kind, str) or kind not in _KINDS:
            raise InvalidSetting(f"buffer_kinds[{shown(name)}] is {shown(kind)}; choose {_LISTED}")


def buffer_kinds(
    model: nn.Module, stated: Mapping[str, BufferKind] | None, problems: list[str]
) -> dict[str, BufferKind]:
    """Return the kinds that the user states, and those of pruning masks and fake quantization, by name.

    Args:
        model: The model.
        stated: Kinds by name or by pattern; a name counts more than a pattern, and an earlier pattern more than a
            later one.
        problems: What is wrong with `stated` is added here.

    Raises:
        InvalidSetting: `stated` is not a mapping, or holds something that is not a kind.
    """
    stated = {} if stated is None else stated
    check_kinds(stated)
    buffers = dict(model.named_buffers())
    problems += [
        f"buffer_kinds names {shown(key)}, which is no buffer of the model; use names in named_buffers()"
        for key in stated
        if not any(name == key or fnmatchcase(name, str(key)) for name in buffers)
    ]
    kinds = _known_kinds(model)
    for name, buffer in buffers.items():
        kind = stated.get(name) or next((kind for key, kind in stated.items() if fnmatchcase(name, str(key))), None)
        if kind is not None:
            kinds[name] = kind
            problems += _contradictions(name, buffer, kind)
    return kinds


def _known_kinds(model: nn.Module) -> dict[str, BufferKind]:
    """Return the kinds that follow from the modules."""
    kinds: dict[str, BufferKind] = {}
    for module_name, module in model.named_modules():
        prefix = f"{module_name}." if module_name else ""
        quantizes = any(base.__module__.startswith(_QUANTIZATION) for base in type(module).__mro__)
        own = {name for name, _ in module.named_parameters(recurse=False)}
        for name, _ in module.named_buffers(recurse=False):
            if quantizes:
                kinds[prefix + name] = "local"
            elif name.endswith("_mask") and f"{name.removesuffix('mask')}orig" in own:  # torch.nn.utils.prune
                kinds[prefix + name] = "constant"
    return kinds


def _contradictions(name: str, buffer: Tensor, kind: BufferKind) -> list[str]:
    """Return what keeps a buffer from being of a kind."""
    if kind == "statistic" and not is_continuous(buffer):
        return [f"buffer '{name}' is of type {buffer.dtype}, which has no mean; choose another kind"]
    if kind == "counter" and is_continuous(buffer):
        return [f"buffer '{name}' is of type {buffer.dtype}, but a counter is whole; choose another kind"]
    return []


def must_not_change(name: str, kind: BufferKind | None) -> str:
    """Return why an update must not change a buffer, and the remedy, for a message.

    Args:
        name: The buffer.
        kind: "constant" or None.
    """
    remedy = f"find_layers(model, buffer_kinds={{'{name}': 'local'}})"
    if kind is None:
        return f"but its kind is not known; state it: {remedy}"
    return f"but it is a constant; change it on the server, or state another kind: {remedy}"


def is_unchanged(value: Tensor, old: Tensor) -> bool:
    """Say whether a value equals an old one, in its own type; NaN equals NaN.

    >>> mask = torch.tensor([0.1, -torch.inf])
    >>> is_unchanged(mask, mask.clone()), is_unchanged(mask.half(), mask), is_unchanged(-mask, mask)
    (True, True, False)
    """
    return value.shape == old.shape and (torch.equal(value, old.to(value)) or bool(_equal(value, old).all()))


def stays_finite(value: Tensor, old: Tensor) -> bool:
    """Say whether a value differs from an old one in finite numbers only.

    >>> stays_finite(torch.tensor([2.0, -torch.inf]), torch.tensor([1.0, -torch.inf]))
    True
    """
    return value.shape == old.shape and bool((value.isfinite() | _equal(value, old)).all())


def _equal(value: Tensor, old: Tensor) -> Tensor:
    return torch.isclose(value, old.to(value), rtol=0, atol=0, equal_nan=True)
