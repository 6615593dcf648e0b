"""The hooks by which a block watches a training loop: all of them registered, or none; all removed together."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from salf.client.torch_events import Watcher, watch


class Listener(Watcher, Protocol):
    """What reacts to the events of a training loop."""

    def on_model(self, arguments: tuple[object, ...], named: Mapping[str, object]) -> None:
        """React to the start of the model's forward pass, with its arguments."""
        ...

    def on_module(self, name: str) -> None:
        """React to the start of the forward pass of an inner module that owns one of the parameters."""
        ...

    def on_gradient(self, name: str) -> None:
        """React to the completion of a parameter's gradient by a backward pass."""
        ...


class Hooks:
    """Hooks on one model and some of its parameters, and a watcher of the backward calls and steps of this thread.

    After `remove`, no trace of them is left. A copy of the model that is made in between carries inert hooks.
    """

    def __init__(self, model: nn.Module, wrapper: nn.Module | None = None) -> None:
        """Prepare hooks on a model, which the loop may call through a wrapper."""
        self._model, self._wrapper = model, wrapper or model
        self._removals: list[Callable[[], None]] = []
        self._hooked: set[str] = set()

    @property
    def are_registered(self) -> bool:
        """Whether the hooks are on the model now."""
        return bool(self._removals)

    @property
    def see_the_model(self) -> bool:
        """Whether calls of the model are seen; after `model.compile()`, a hook would cause a compilation."""
        return not _is_compiled(self._wrapper)

    def register(self, listener: Listener, parameters: Iterable[str]) -> None:
        """Add all hooks; if one cannot be added, remove the others.

        Args:
            listener: What reacts to the events.
            parameters: Names of the parameters to watch.
        """
        try:
            names = list(parameters)
            self._watch_modules(listener, {name.rpartition(".")[0] for name in names})
            self.watch_gradients(listener, names)
            self._removals.append(watch(listener))
        except BaseException:
            self.remove()
            raise

    def watch_gradients(self, listener: Listener, parameters: Iterable[str]) -> None:
        """Watch the gradients of these parameters, unless that is done or they are frozen."""
        for name in parameters:
            parameter = self._model.get_parameter(name)
            if name not in self._hooked and parameter.requires_grad:
                add_hook: Callable[..., RemovableHandle] = parameter.register_post_accumulate_grad_hook
                self._removals.append(add_hook(partial(_call_with_name, listener.on_gradient, name)).remove)
                self._hooked.add(name)

    def remove(self) -> None:
        """Remove all hooks."""
        while self._removals:
            self._removals.pop()()
        self._hooked.clear()

    def _watch_modules(self, listener: Listener, owners: set[str]) -> None:
        """Watch the calls of the model and of the modules in it that own parameters."""
        if self.see_the_model:
            hook = _ForwardHook(lambda _, *arguments: listener.on_model(*arguments))
            self._removals.append(self._wrapper.register_forward_pre_hook(hook, with_kwargs=True).remove)
        inner_modules = () if hasattr(self._wrapper, "_orig_mod") else watchable_modules(self._model)
        for name, module in inner_modules:
            if name and name in owners:
                inner = _ForwardHook(lambda *_, name=name: listener.on_module(name))
                self._removals.append(module.register_forward_pre_hook(inner).remove)


def watchable_modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Yield the modules, with their names, that are not inside compiled ones: hooks in these cause a compilation."""
    todo = [("", model)]
    while todo:
        name, module = todo.pop()
        yield name, module
        if not _is_compiled(module) and not hasattr(module, "_orig_mod"):
            todo += [(f"{name}.{child}" if name else child, inner) for child, inner in module.named_children()]


def is_compiled(model: nn.Module) -> bool:
    """Say whether a model, or a module in it, was compiled."""
    return any(_is_compiled(module) or hasattr(module, "_orig_mod") for module in model.modules())


def _is_compiled(module: nn.Module) -> bool:
    """Say whether `module.compile()` was called; then the module's own hooks are compiled, too."""
    return getattr(module, "_compiled_call_impl", None) is not None


def _call_with_name(react: Callable[[str], None], name: str, _: Tensor) -> None:
    react(name)


class _ForwardHook:
    """A forward hook; copying or pickling it gives one that does nothing."""

    def __init__(self, act: Callable[..., None]) -> None:
        self._act = act

    def __call__(self, *arguments: object) -> None:
        self._act(*arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return (_ForwardHook, (_do_nothing,))


def _do_nothing(*_: object) -> None:
    pass
