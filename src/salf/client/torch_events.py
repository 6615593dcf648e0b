"""What PyTorch does in a training loop, for all models of a thread: backward calls and optimizer steps.

`Tensor.backward`, gradient scalers and the checkpoints that repeat a forward pass all call `torch.autograd.backward`.
PyTorch has no hook that runs around this call, so it is replaced while a block is open. For steps, torch has hooks that
run for every optimizer, also for one that a training function creates itself, or that a wrapper contains.
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

    def before_step(self, optimizer: Optimizer, arguments: tuple[object, ...], named: Mapping[str, object]) -> None:
        """React to the start of any optimizer's step, with its arguments."""
        ...

    def after_step(self, optimizer: Optimizer) -> None:
        """React to the end of any optimizer's step."""
        ...


@dataclass
class _Events:
    """The watchers of each thread, and how to end what was installed for them."""

    watchers: dict[int, list[Watcher]] = field(default_factory=dict)
    backward: Callable[..., None] = torch.autograd.backward
    removals: list[Callable[[], None]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def here(self) -> tuple[Watcher, ...]:
        """Return the watchers of this thread."""
        return tuple(self.watchers.get(threading.get_ident(), ()))


_events = _Events()


def watch(watcher: Watcher) -> Callable[[], None]:
    """Tell `watcher` of the backward calls and steps of this thread; return the function that ends this.

    >>> class Announcer:
    ...     def on_backward(self, call, roots, inputs):
    ...         print("backward from", len(roots), "tensor")
    ...         call()
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
    if torch.autograd.backward is not _watched_backward:
        _events.backward, torch.autograd.backward = torch.autograd.backward, _watched_backward
    if not _events.removals:
        before = register_optimizer_step_pre_hook(_before_step)
        _events.removals = [before.remove, register_optimizer_step_post_hook(_after_step).remove]


def _uninstall() -> None:
    # If other code has replaced the function since, this one stays below theirs, without effect.
    if torch.autograd.backward is _watched_backward:
        torch.autograd.backward = _events.backward
    while _events.removals:
        _events.removals.pop()()


def _before_step(optimizer: Optimizer, arguments: tuple[object, ...], named: Mapping[str, object]) -> None:
    for watcher in _events.here():
        watcher.before_step(optimizer, arguments, named)


def _after_step(optimizer: Optimizer, *_: object) -> None:
    for watcher in _events.here():
        watcher.after_step(optimizer)


def _watched_backward(*arguments: object, **named: object) -> None:
    # The signature of torch: tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs.
    tensors = arguments[0] if arguments else named["tensors"]
    inputs = arguments[5] if len(arguments) > 5 else named.get("inputs")
    call = partial(_events.backward, *arguments, **named)
    for watcher in _events.here():
        call = partial(watcher.on_backward, call, _as_tuple(tensors), None if inputs is None else _as_tuple(inputs))
    call()


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
