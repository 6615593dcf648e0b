"""What PyTorch does in a training loop, for all models of a thread: backward calls and optimizer steps.

`Tensor.backward`, gradient scalers and the checkpoints that repeat a forward pass all call `torch.autograd.backward`.
PyTorch has no hook that runs around this call, so it is replaced while a block is open. For steps, torch has hooks that
run for every optimizer, also for one that a training function creates itself, or that a wrapper contains. Scalers of
mixed precision are seen when they scale a loss.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

BackwardCall = Callable[[], None]
StepArguments = tuple[tuple[object, ...], dict[str, object]]


class Watcher(Protocol):
    """What is told of the events of one thread."""

    def on_backward(self, call: BackwardCall, roots: tuple[object, ...], inputs: tuple[object, ...] | None) -> None:
        """Run a backward call.

        Args:
            call: The call.
            roots: The tensors that it differentiates.
            inputs: The only tensors that get a gradient; None for all.
        """
        ...

    def on_scale(self, scaler: torch.amp.GradScaler) -> None:
        """React to a gradient scaler that scales a loss."""
        ...

    def before_step(
        self, optimizer: Optimizer, arguments: tuple[object, ...], named: Mapping[str, object]
    ) -> StepArguments | None:
        """React to the start of any optimizer's step, with its arguments; return others to replace them."""
        ...

    def after_step(self, optimizer: Optimizer) -> None:
        """React to the end of any optimizer's step."""
        ...


@dataclass
class _Events:
    """The watchers of each thread, and how to end what was installed for them.

    On an accelerator, hooks run in a thread of the autograd engine, which belongs to the backward calls that are open.
    """

    watchers: dict[int, list[Watcher]] = field(default_factory=dict)
    in_backward: list[Watcher] = field(default_factory=list)
    removals: list[Callable[[], None]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def here(self) -> tuple[Watcher, ...]:
        """Return the watchers of this thread."""
        thread = threading.get_ident()
        if thread in self.watchers:
            return tuple(self.watchers[thread])
        if self.in_backward and all(thread != known.ident for known in threading.enumerate()):
            return tuple(dict.fromkeys(self.in_backward))
        return ()


_events = _Events()


def watch(watcher: Watcher) -> Callable[[], None]:
    """Tell `watcher` of the backward calls and steps of this thread; return the function that ends this.

    >>> class Announcer:
    ...     def on_backward(self, call, roots, inputs):
    ...         print("backward from", len(roots), "tensor")
    ...         call()
    ...     def on_scale(self, scaler):
    ...         print("a scaler")
    ...     def before_step(self, optimizer, arguments, named):
    ...         print("step of", type(optimizer).__name__)
    ...     def after_step(self, optimizer):
    ...         pass
    >>> weight = torch.ones(1, requires_grad=True)
    >>> end = watch(Announcer())
    >>> weight.sum().backward()
    backward from 1 tensor
    >>> torch.optim.SGD([weight]).step()
    step of SGD
    >>> end()
    >>> weight.sum().backward()
    """
    thread = threading.get_ident()
    with _events.lock:
        if not _events.watchers:
            _install()
        _events.watchers.setdefault(thread, []).append(watcher)
    return partial(_end, thread, watcher)


def _end(thread: int, watcher: Watcher) -> None:
    with _events.lock:
        watchers = _events.watchers.get(thread, [])
        if watcher in watchers:
            watchers.remove(watcher)
        if not watchers:
            _events.watchers.pop(thread, None)
        if not _events.watchers:
            _uninstall()


def _install() -> None:
    before = register_optimizer_step_pre_hook(_before_step)
    after = register_optimizer_step_post_hook(_after_step)
    _events.removals = [before.remove, after.remove, _replace_backward(), _replace_scale()]


def _uninstall() -> None:
    while _events.removals:
        _events.removals.pop()()


def _replace_backward() -> Callable[[], None]:
    """Replace `torch.autograd.backward`; return the function that undoes it."""
    original, is_active = torch.autograd.backward, True

    def watched(*arguments: object, **named: object) -> None:
        # The signature of torch: tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs.
        tensors = arguments[0] if arguments else named["tensors"]
        inputs = arguments[5] if len(arguments) > 5 else named.get("inputs")
        limits = None if inputs is None else _as_tuple(inputs)
        call: BackwardCall = partial(original, *arguments, **named)  # type: ignore[arg-type]  # - as they came
        for watcher in _events.here() if is_active else ():
            call = partial(_watch_call, watcher, call, _as_tuple(tensors), limits)
        call()

    def undo() -> None:
        nonlocal is_active
        is_active = False  # if other code has replaced the function since, this one stays below theirs, without effect
        if torch.autograd.backward is watched:
            torch.autograd.backward = original

    torch.autograd.backward = watched
    return undo


def _watch_call(
    watcher: Watcher, call: BackwardCall, roots: tuple[object, ...], inputs: tuple[object, ...] | None
) -> None:
    _events.in_backward.append(watcher)
    try:
        watcher.on_backward(call, roots, inputs)
    finally:
        _events.in_backward.remove(watcher)


def _replace_scale() -> Callable[[], None]:
    """Replace `GradScaler.scale`; return the function that undoes it."""
    original, is_active = torch.amp.GradScaler.scale, True

    def watched(self: torch.amp.GradScaler, outputs: object) -> object:
        for watcher in _events.here() if is_active else ():
            watcher.on_scale(self)
        return original(self, outputs)  # type: ignore[call-overload]  # - as it came

    def undo() -> None:
        nonlocal is_active
        is_active = False
        if torch.amp.GradScaler.scale is watched:
            torch.amp.GradScaler.scale = original  # type: ignore[method-assign]  # - what it was

    torch.amp.GradScaler.scale = watched  # type: ignore[method-assign, assignment]  # - until the last block ends
    return undo


def _before_step(
    optimizer: Optimizer, arguments: tuple[object, ...], named: Mapping[str, object]
) -> StepArguments | None:
    replaced = None
    for watcher in _events.here():
        replaced = watcher.before_step(optimizer, *(replaced or (arguments, named))) or replaced
    return replaced


def _after_step(optimizer: Optimizer, *_: object) -> None:
    for watcher in _events.here():
        watcher.after_step(optimizer)


def _as_tuple(tensors: object) -> tuple[object, ...]:
    if isinstance(tensors, Mapping):
        return tuple(tensors.values())
    return tuple(tensors) if isinstance(tensors, Iterable) and not isinstance(tensors, Tensor) else (tensors,)


def reached_parameters(
    roots: Iterable[object], inputs: Iterable[object] | None, names: Mapping[int, str]
) -> frozenset[str]:
    """Return the parameters to which a backward pass accumulates, outside of checkpointed segments.

    Args:
        roots: The tensors that are differentiated.
        inputs: The only tensors that get a gradient; None for all.
        names: The parameters' names by `id`.

    >>> model = torch.nn.Linear(2, 1)
    >>> loss = (model.weight * 2).sum()
    >>> reached_parameters([loss], None, {id(value): name for name, value in model.named_parameters()})
    frozenset({'weight'})
    """
    allowed = names if inputs is None else {id(tensor) for tensor in inputs}
    leaves = {id(root) for root in roots if isinstance(root, Tensor) and root.grad_fn is None}
    nodes = [getattr(root, "grad_fn", None) or getattr(root, "node", None) for root in roots]
    seen = {node for node in nodes if node is not None}
    todo = [*seen]
    while todo:
        node = todo.pop()
        variable = getattr(node, "variable", None)  # only the nodes that accumulate into a leaf have one
        if variable is not None:
            leaves.add(id(variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return frozenset(names[leaf] for leaf in leaves if leaf in names and leaf in allowed)
