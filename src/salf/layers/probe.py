"""Watch one forward and backward pass of a copy of a model, and report what happened in which order."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

_CORRECT = "correct the model or the example"

Example = torch.Tensor | tuple[object, ...] | list[object] | Mapping[str, object]


class ProbeFailed(Exception):
    """The model cannot be run forward and backward on the example; the message says which part fails and why."""


@dataclass(frozen=True)
class PassTrace:
    """What happened in one forward and backward pass.

    Attributes:
        completions: The name of each parameter and the meter's reading when its gradient was ready, in this order. A
            gradient that arrives in parts is listed several times.
        called: Module names, in the order of their first call.
        reading_before: The meter's reading before the forward pass.
        reading_after_forward: Its reading between the two passes.
    """

    completions: tuple[tuple[str, float], ...]
    called: tuple[str, ...]
    reading_before: float
    reading_after_forward: float


def trace_pass(model: nn.Module, example: Example, read_meter: Callable[[], float] = lambda: 0.0) -> PassTrace:
    """Run a copy of a model forward and backward, and return what happened in which order.

    The model, its buffers and the global random state do not change.

    Args:
        model: The model, already built.
        example: One batch; see `call`.
        read_meter: Runs before and after the forward pass, and whenever a gradient is ready.

    Raises:
        ProbeFailed: The model cannot be copied, run, or differentiated.
    """
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise ProbeFailed(f"the model cannot be copied for the probe ({_summary(error)}); fix its deepcopy") from error
    example = copied(example)
    devices = sorted({parameter.get_device() for parameter in twin.parameters() if parameter.is_cuda})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            return _observe_pass(twin.train(), example, read_meter)
        except ProbeFailed as in_training:
            # In training, some models refuse a tiny batch or need targets. In evaluation, their graph is the same.
            try:
                return _observe_pass(copy.deepcopy(model).eval(), example, read_meter)
            except ProbeFailed:
                raise in_training from None


def _observe_pass(model: nn.Module, example: Example, read_meter: Callable[[], float]) -> PassTrace:
    completions: list[tuple[str, float]] = []
    called: dict[str, None] = {}
    try:
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name))
    except RuntimeError as error:  # a ScriptModule
        raise ProbeFailed(f"its calls cannot be watched; pass the uncompiled model ({_summary(error)})") from error
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.grad = None
            add_hook: Callable[..., object] = parameter.register_post_accumulate_grad_hook
            add_hook(lambda _, name=name: completions.append((name, read_meter())))
    before = read_meter()
    try:
        outputs = call(model, example)
    except Exception as error:
        raise ProbeFailed(f"the forward pass fails on the example ({_summary(error)}); {_CORRECT}") from error
    after_forward = read_meter()
    _backpropagate(outputs)
    if not completions:
        raise ProbeFailed("no gradient reaches a trainable parameter; check for detach() and no_grad() in forward()")
    return PassTrace(tuple(completions), tuple(called), before, after_forward)


def _backpropagate(outputs: object) -> None:
    sums = [tensor.sum() for tensor in tensors_in(outputs) if tensor.requires_grad and tensor.is_floating_point()]
    if not sums:
        raise ProbeFailed("no output of the model depends on a trainable parameter; make forward() return scores")
    try:
        torch.autograd.backward(torch.stack([total.float() for total in sums]).sum())
    except Exception as error:
        raise ProbeFailed(f"the backward pass fails on the example ({_summary(error)}); {_CORRECT}") from error


def call(model: nn.Module, example: Example) -> object:
    """Call a model on one tensor, a tuple or list of positional arguments, or a mapping of named ones."""
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, (tuple, list)):
        return model(*example)
    return model(example)


def copied(example: Example) -> Example:
    """Copy the tensors of an example, because a model may write to them."""
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


def _summary(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:200]}"
