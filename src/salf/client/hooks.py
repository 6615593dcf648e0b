"""The hooks by which a block watches a training loop: registered together, removed together."""

from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class Hooks:
    """Hooks on one model, some of its parameters, and its optimizer.

    After `remove`, no trace of them is left. A copy of the model that is made in between carries inert hooks.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self._handles: list[RemovableHandle] = []

    @property
    def are_registered(self) -> bool:
        """Whether the hooks are on the model now."""
        return bool(self._handles)

    def register(
        self,
        parameters: Iterable[str],
        *,
        on_model: Callable[[], None],
        on_module: Callable[[], None],
        on_gradient: Callable[[str, Tensor], None],
        before_step: Callable[[Optimizer, tuple[object, ...], dict[str, object]], None],
        after_step: Callable[[Optimizer, tuple[object, ...], dict[str, object]], None],
    ) -> None:
        """Add all hooks.

        Args:
            parameters: Names of the parameters to watch.
            on_model: Runs before the model's forward pass.
            on_module: Runs before the forward pass of each inner module that owns one of the parameters.
            on_gradient: Receives a parameter's name and the parameter whenever a backward pass completes its gradient.
            before_step: Receives the optimizer and the arguments of `step`.
            after_step: Receives the same after the step.
        """
        names = list(parameters)
        owners = {name.rpartition(".")[0] for name in names}
        for name, module in self._model.named_modules():
            if name == "":
                self._handles.append(module.register_forward_pre_hook(_ForwardHook(on_model)))
            elif name in owners:
                self._handles.append(module.register_forward_pre_hook(_ForwardHook(on_module)))
        tensors = dict(self._model.named_parameters())
        for name in names:
            add_hook: Callable[..., RemovableHandle] = tensors[name].register_post_accumulate_grad_hook
            self._handles.append(add_hook(partial(on_gradient, name)))
        self._handles.append(self._optimizer.register_step_pre_hook(before_step))
        self._handles.append(self._optimizer.register_step_post_hook(after_step))

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _ForwardHook:
    """A forward hook without arguments; copying or pickling it gives one that does nothing."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def __call__(self, *_: object) -> None:
        self._act()

    def __reduce__(self) -> tuple[object, ...]:
        return (_ForwardHook, (_do_nothing,))


def _do_nothing() -> None:
    pass
