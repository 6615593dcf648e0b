"""Max pooling without overlap, by comparing whole slices: many times faster than `max_pool2d` on a CPU."""

from collections.abc import Callable
from functools import reduce
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_LARGEST = 3
_CEIL_MODE = False
_max_pool2d_backward = torch.ops.aten.max_pool2d_with_indices_backward.default


def is_stock_module(module: nn.Module) -> bool:
    """Say whether a module is one of torch's, without hooks and with the `forward` of its class.

    >>> module = nn.Linear(1, 1)
    >>> handle = module.register_forward_hook(print)
    >>> is_stock_module(nn.Linear(1, 1)), is_stock_module(module)
    (True, False)
    """
    own = vars(module)
    changed = "forward" in own or any(own[hooks] for hooks in _HOOKS)
    return type(module).__module__.startswith("torch.nn.modules.") and not changed


def has_fast_form(module: nn.Module) -> bool:
    """Say whether a module is max pooling over small squares that neither overlap nor reach outside the input."""
    if not isinstance(module, nn.MaxPool2d) or not is_stock_module(module) or module.return_indices or module.ceil_mode:
        return False
    sides = {_pair(module.kernel_size), _pair(module.stride)}
    plain = _pair(module.padding) == (0, 0) and _pair(module.dilation) == (1, 1)
    return plain and len(sides) == 1 and all(side[0] == side[1] <= _LARGEST for side in sides)


class FastPool:
    """Max pooling over small squares, with the results and the gradients of `max_pool2d`.

    >>> pool = FastPool(nn.MaxPool2d(2))
    >>> pool(torch.arange(16.0).view(1, 1, 4, 4))
    tensor([[[[ 5.,  7.],
              [13., 15.]]]])
    """

    def __init__(self, module: nn.MaxPool2d) -> None:
        self._side = _pair(module.kernel_size)[0]

    def __call__(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, channels, height // side, width // side)."""
        if x.device.type != "cpu" or x.ndim != 4 or not x.is_contiguous():
            return functional.max_pool2d(x, self._side)
        return _pool(x, self._side) if torch.is_grad_enabled() else _largest(x, self._side)

    def grad_input(self, x: Tensor, pooled: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient with respect to `x`, given the gradient with respect to the result `pooled`."""
        if x.is_cpu:
            return _grad_input(x, pooled, gradient, self._side)
        # On an accelerator two calls into torch cost less than many short ones.
        _, places = functional.max_pool2d(x, self._side, return_indices=True)
        window, nothing, one = [self._side] * 2, [0, 0], [1, 1]
        result: Tensor = _max_pool2d_backward(gradient, x, window, window, nothing, one, _CEIL_MODE, places)
        return result


class FastMaxPool2d(nn.MaxPool2d):
    """A `MaxPool2d` that computes by its fast form."""

    def __init__(self, module: nn.MaxPool2d) -> None:
        super().__init__(module.kernel_size, module.stride)
        self._pool = FastPool(module)

    def forward(self, input: Tensor) -> Tensor:
        """Compute the result."""
        return self._pool(input)


def use_fast_pooling(model: nn.Module) -> nn.Module:
    """Replace the max poolings in `model` that have a fast form by it; return the model."""
    for parent in [*model.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, nn.MaxPool2d) and has_fast_form(child):
                setattr(parent, name, FastMaxPool2d(child))
    return model


class _Context(Protocol):
    """What `_FastPooling` keeps between its forward and its backward pass; torch leaves the type of it open.

    Attributes:
        side: The side of a window.
        largest: The result of the forward pass.
        writes: How often the memory of the result had been written to.
    """

    side: int
    largest: Tensor
    writes: int

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """The tensors of `save_for_backward`; torch refuses those that were written to since."""
        ...

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for the backward pass."""
        ...


class _FastPooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, side: int) -> Tensor:
        ctx.save_for_backward(x)
        largest = _largest(x, side)
        # Not saved for the backward pass: autograd would refuse it after the next operation has worked in place.
        ctx.side, ctx.largest, ctx.writes = side, largest.detach(), _writes(largest)
        return largest

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        untouched = _writes(ctx.largest) == ctx.writes
        return _grad_input(x, ctx.largest if untouched else _largest(x, ctx.side), gradient, ctx.side), None


_pool = cast("Callable[..., Tensor]", _FastPooling.apply)


def _writes(tensor: Tensor) -> int:
    """Return how often a tensor's memory was written to."""
    return tensor._version  # noqa: SLF001 - torch counts it nowhere else


def _largest(x: Tensor, side: int) -> Tensor:
    """Return the largest element of each window."""
    first, *others = _slices(x, side)
    return reduce(torch.maximum, others, first) if others else first.clone()


def _grad_input(x: Tensor, largest: Tensor, gradient: Tensor, side: int) -> Tensor:
    """Return the gradient with respect to `x`, given the gradient with respect to the `largest` of each window."""
    result = torch.zeros_like(x)
    rest = gradient.clone()
    *slices, last = zip(_slices(x, side), _slices(result, side), strict=True)
    for values, target in slices:
        # As in max_pool2d, the gradient goes to the first of several that are equally large.
        torch.mul(rest, (values == largest).to(rest.dtype), out=target)
        rest -= target
    last[1].copy_(rest)  # where none of the others is the largest, the last is
    return result


def _slices(x: Tensor, side: int) -> list[Tensor]:
    """Return the elements of the windows, one tensor for each place in a window, row by row."""
    height, width = (size // side * side for size in x.shape[2:])
    return [x[:, :, row:height:side, column:width:side] for row in range(side) for column in range(side)]


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
