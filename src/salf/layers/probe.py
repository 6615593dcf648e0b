"""Watch one forward and backward pass of a copy of a model, and report what happened in which order."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

Example = torch.Tensor | tuple[object, ...] | list[object] | Mapping[str, object]


class ProbeFailed(Exception):
    """The model could not be run forward and backward on the example; the message says which part and why."""


@dataclass(frozen=True)
class Completion:
    """One parameter's gradient became ready: its name, and the meter's reading at that moment."""

    parameter: str
    reading: float


@dataclass(frozen=True)
class Trace:
    """What one pass did: gradients in the order of their completion, modules in the order of their first call."""

    completions: tuple[Completion, ...]
    called: tuple[str, ...]
    reading_before: float
    reading_after_forward: float


def _no_reading() -> float:
    return 0.0


def trace(model: nn.Module, example: Example, read_meter: Callable[[], float] = _no_reading) -> Trace:
    """Run a copy of `model` forward and backward on `example` and return the order of events.

    The model, its buffers and the global random state stay as they are. `read_meter` is called before and after the
    forward pass and at every completed gradient. Raises `ProbeFailed`.
    """
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise ProbeFailed(f"the model cannot be copied for the probe ({_short(error)})") from error
    example = copied(example)
    devices = sorted({parameter.get_device() for parameter in twin.parameters() if parameter.is_cuda})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            return _watch(twin.train(), example, read_meter)
        except ProbeFailed as in_training:
            # Some models refuse a tiny batch, or want targets, while training; their graph is the same in evaluation.
            try:
                return _watch(copy.deepcopy(model).eval(), example, read_meter)
            except ProbeFailed:
                raise in_training from None


def _watch(model: nn.Module, example: Example, read_meter: Callable[[], float]) -> Trace:
    completions: list[Completion] = []
    called: dict[str, None] = {}
    try:
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name))
    except RuntimeError as error:  # a ScriptModule
        raise ProbeFailed(f"its calls cannot be watched; give it uncompiled ({_short(error)})") from error
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.grad = None
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda _, name=name: completions.append(Completion(name, read_meter()))
            )
    before = read_meter()
    try:
        outputs = call(model, example)
    except Exception as error:
        raise ProbeFailed(f"the forward pass fails on the example ({_short(error)})") from error
    reading = read_meter()
    differentiable = [
        tensor.sum() for tensor in tensors_in(outputs) if tensor.requires_grad and tensor.is_floating_point()
    ]
    if not differentiable:
        raise ProbeFailed("no output of the model depends on a trainable parameter")
    try:
        torch.stack([total.float() for total in differentiable]).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ProbeFailed(f"the backward pass fails on the example ({_short(error)})") from error
    if not completions:
        raise ProbeFailed("no gradient reaches a trainable parameter")
    return Trace(tuple(completions), tuple(called), before, reading)


def call(model: nn.Module, example: Example) -> object:
    """Call `model` on an example: one tensor, a tuple or list of positional arguments, or a mapping of named ones."""
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, (tuple, list)):
        return model(*example)
    return model(example)


def copied(example: Example) -> Example:
    """Copy the tensors of an example, into which a model may write."""
    if isinstance(example, torch.Tensor):
        return example.detach().clone()
    if isinstance(example, Mapping):
        return {name: _copied(value) for name, value in example.items()}
    return tuple(map(_copied, example))


def _copied(value: object) -> object:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def tensors_in(nested: object) -> Iterator[torch.Tensor]:
    """Yield every tensor in nested mappings, tuples and lists."""
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for value in nested.values():
            yield from tensors_in(value)
    elif isinstance(nested, (tuple, list)):
        for value in nested:
            yield from tensors_in(value)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:200]}"
