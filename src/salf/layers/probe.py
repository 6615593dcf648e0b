"""Watch one forward and backward pass of a copy of a model, and report what happened in which order."""

import copy
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_FURTHER_PASSES = 12
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

    @property
    def reached(self) -> tuple[str, ...]:
        """Names of the parameters in the order of completion; a gradient in parts is complete with its last one."""
        return tuple(reversed(dict.fromkeys(name for name, _ in reversed(self.completions))))


def trace_passes(
    model: nn.Module,
    example: Example,
    read_meter: Callable[[], float] = lambda: 0.0,
    wanted: Collection[str] | None = None,
) -> tuple[PassTrace, ...]:
    """Run a copy of a model forward and backward until each parameter has had a gradient; return what happened.

    One pass suffices for most models. Where layers are skipped at random or in turn, further passes follow, up to a
    fixed number: one in evaluation, the others in training. Those that reach no further parameter are left out. The
    result does not depend on the global random state, which does not change, and neither do the model and its buffers.

    Args:
        model: The model, already built.
        example: One batch; see `call`.
        read_meter: Runs before and after the forward pass, and whenever a gradient is ready.
        wanted: Names of the parameters to reach; by default all trainable ones.

    Raises:
        ProbeFailed: The model cannot be copied, run, or differentiated.
    """
    twin = twin_of(model)
    devices = sorted({parameter.get_device() for parameter in twin.parameters() if parameter.is_cuda})
    trainable = {name for name, parameter in twin.named_parameters() if parameter.requires_grad}
    missing = trainable if wanted is None else trainable.intersection(wanted)
    with _seeded(devices), torch.enable_grad():
        try:
            traces = [_observe_pass(twin.train(), copied(example), read_meter)]
        except ProbeFailed as in_training:
            # In training, some models refuse a tiny batch or need targets. In evaluation, their graph is the same.
            try:
                return (_observe_pass(twin_of(model).eval(), copied(example), read_meter),)
            except ProbeFailed:
                raise in_training from None
        missing = missing.difference(traces[0].reached)
        for attempt in range(_FURTHER_PASSES):
            if not missing:
                break
            with suppress(ProbeFailed):
                trace = _observe_pass(twin.train(attempt > 0), copied(example), read_meter)
                traces += [trace] if missing.intersection(trace.reached) else []
                missing = missing.difference(trace.reached)
    return tuple(traces)


def twin_of(model: nn.Module) -> nn.Module:
    """Copy a model. Tensors that it computed from parameters, as weight_norm and pruning do, are copied as values."""
    computed = [tensor for module in model.modules() for tensor in tensors_in(vars(module)) if not tensor.is_leaf]
    try:
        return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})
    except Exception as error:
        raise ProbeFailed(f"the model cannot be copied for the probe ({_summary(error)}); fix its deepcopy") from error


def merged(orders: Iterable[Sequence[str]]) -> list[str]:
    """Merge orders into one: each name that the first lacks goes behind its predecessor in a later one.

    >>> merged([("head", "third", "first"), ("head", "third", "second", "first")])
    ['head', 'third', 'second', 'first']
    """
    result: list[str] = []
    for order in orders:
        known = set(result)
        behind = 0
        for name in order:
            if name in known:
                behind = result.index(name)
            else:
                result.insert(behind, name)
            behind += 1
    return result


@contextmanager
def _seeded(devices: Sequence[int]) -> Iterator[None]:
    """Seed the random generators of torch, Python and NumPy, and restore their states afterwards."""
    # Models that skip layers often draw from NumPy's global generator.
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  # - the state to protect is global
    with torch.random.fork_rng(devices=devices):
        try:
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002  # - as above
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002  # - as above


def _observe_pass(model: nn.Module, example: Example, read_meter: Callable[[], float]) -> PassTrace:
    completions: list[tuple[str, float]] = []
    called: dict[str, None] = {}
    with _watched(model, completions, called, read_meter):
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


@contextmanager
def _watched(
    model: nn.Module, completions: list[tuple[str, float]], called: dict[str, None], read_meter: Callable[[], float]
) -> Iterator[None]:
    """Record the calls of modules and the completions of gradients in the context."""
    with ExitStack() as hooks:
        try:
            for name, module in model.named_modules():
                handle = module.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name))
                hooks.callback(handle.remove)
        except RuntimeError as error:  # a ScriptModule
            raise ProbeFailed(f"its calls cannot be watched; pass the uncompiled model ({_summary(error)})") from error
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.grad = None
                add_hook: Callable[..., RemovableHandle] = parameter.register_post_accumulate_grad_hook
                handle = add_hook(lambda _, name=name: completions.append((name, read_meter())))
                hooks.callback(handle.remove)
        yield


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
    """Yield every tensor in nested mappings, dataclasses, tuples, lists and sets."""
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for value in nested.values():
            yield from tensors_in(value)
    elif isinstance(nested, (tuple, list, set, frozenset)):
        for value in nested:
            yield from tensors_in(value)
    elif is_dataclass(nested) and not isinstance(nested, type):
        for field in fields(nested):
            yield from tensors_in(getattr(nested, field.name, None))


def _summary(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:200]}"
