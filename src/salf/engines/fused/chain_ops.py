"""The operations of chains, each with its gradients written by hand."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from salf.engines.fused.pooling import FastPool

# Looking an operation up takes longer than a small one.
_threshold_backward = torch.ops.aten.threshold_backward.grad_input
_convolution_backward = torch.ops.aten.convolution_backward.default
# Two threads multiply this many rows a third faster the other way round.
_MANY_ROWS = 2048
# Fewer columns than these are multiplied several times slower than as many rows, as long as the rest is small.
_FEW_COLUMNS, _SMALL = 16, 2**21
# Below this many numbers, two functions that Python knows are faster than the fitting one, which must be looked up.
_SMALL_GRADIENT = 2**15


@dataclass(frozen=True)
class Op:
    """An operation without parameters.

    Attributes:
        forward: Computes the result for all examples, without gradient.
        grad_input: As `Weighted.grad_input`.
        only_reshapes: Whether it changes nothing but the shape of each example.
        needs_autograd: Whether `grad_input` uses autograd.
        layer: None: it belongs to no layer.
    """

    forward: Callable[[Tensor], Tensor]
    grad_input: Callable[[Tensor, Tensor, Tensor], Tensor]
    only_reshapes: bool = False
    needs_autograd: bool = False
    layer: ClassVar[int | None] = None


def relu(*, in_place: bool) -> Op:
    """Return a ReLU; `in_place` if no other operation needs its input."""
    return Op(torch.relu_ if in_place else torch.relu, _relu_grad_input)


def flattening(function: Callable[[Tensor], Tensor]) -> Op:
    """Return `nn.Flatten`, or another function that only changes the shape of each example."""
    return Op(function, lambda x, _, gradient: gradient.reshape(len(gradient), *x.shape[1:]), only_reshapes=True)


def recomputed(function: Callable[[Tensor], Tensor]) -> Op:
    """Return a function that is computed again, with autograd, in the backward pass of the examples in need of it."""

    def grad_input(x: Tensor, _: Tensor, grad_output: Tensor) -> Tensor:
        leaf = x[: len(grad_output)].detach().requires_grad_()
        with torch.enable_grad():
            result = function(leaf)
        return torch.autograd.grad(result, leaf, grad_output)[0]

    return Op(function, grad_input, needs_autograd=True)


def pooling(pool: FastPool) -> Op:
    """Return max pooling that has a fast form."""
    return Op(pool, lambda x, y, gradient: pool.grad_input(x[: len(gradient)], y[: len(gradient)], gradient))


class Weighted(ABC):
    """An operation with a weight and perhaps a bias.

    Args:
        names: The names of weight and bias; None for a missing bias.
        owner: The layer of each trained parameter, by name.

    Attributes:
        trained: The names of weight and bias, None for one that is not trained.
        layer: The layer of what is trained; None if neither is.
        weight: The current weight.
        bias: The current bias, if it has one.
    """

    def __init__(self, names: tuple[str, str | None], owner: Mapping[str, int]) -> None:
        self._names = names
        self.trained = tuple(name if name in owner else None for name in names)
        self.layer = next((owner[name] for name in self.trained if name is not None), None)
        self.weight: Tensor
        self.bias: Tensor | None = None

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Compute with these weights from now on."""
        weight, bias = self._names
        self.weight, self.bias = weights[weight], None if bias is None else weights[bias]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Compute the result for all examples, without gradient."""

    @abstractmethod
    def grad_input(self, x: Tensor, y: Tensor, grad_output: Tensor) -> Tensor:
        """Return the gradient with respect to the first rows of `x`, as many as `grad_output` has.

        Args:
            x: What the operation was given, for all examples.
            y: Its result, for all examples.
            grad_output: The gradient with respect to the first rows of `y`; its memory may be used for the result.
        """

    @abstractmethod
    def grad_params(self, out: Mapping[str, Tensor], x: Tensor, grad_output: Tensor) -> None:
        """Write the gradients with respect to what is trained into `out`, by name."""

    def empty_gradients(self) -> dict[str, Tensor]:
        """Return uninitialized memory for the gradients with respect to what is trained, by name."""
        values = zip(self.trained, (self.weight, self.bias), strict=True)
        return {name: torch.empty_like(value) for name, value in values if name is not None and value is not None}

    def gradients(self, x: Tensor, grad_output: Tensor) -> dict[str, Tensor]:
        """Return the gradients with respect to what is trained, by name."""
        out = self.empty_gradients()
        self.grad_params(out, x, grad_output)
        return out


class Dense(Weighted):
    """`nn.Linear` on inputs of shape (examples, …, features)."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the result."""
        if x.ndim > 2 or len(self.weight) >= _FEW_COLUMNS or x.numel() > _SMALL:
            return functional.linear(x, self.weight, self.bias)
        if self.bias is None:
            return torch.mm(self.weight, x.t()).t()
        return torch.addmm(self.bias[:, None], self.weight, x.t()).t()

    def grad_input(self, x: Tensor, y: Tensor, grad_output: Tensor) -> Tensor:
        """Return the gradient with respect to the first rows of `x`."""
        return torch.mm(grad_output, self.weight) if grad_output.ndim == 2 else grad_output @ self.weight

    def grad_params(self, out: Mapping[str, Tensor], x: Tensor, grad_output: Tensor) -> None:
        """Write the gradients with respect to what is trained into `out`."""
        x, grad_output, (weight, bias) = _as_matrix(x), _as_matrix(grad_output), self.trained
        if weight is not None and len(x) >= _MANY_ROWS and len(self.weight) >= _FEW_COLUMNS:
            out[weight].copy_(torch.mm(x.t(), grad_output).t())
        elif weight is not None:
            torch.mm(grad_output.t(), x, out=out[weight])
        if bias is not None:
            torch.sum(grad_output, 0, out=out[bias])


class Convolution(Weighted):
    """`nn.Conv2d` that pads with zeros, if at all."""

    def __init__(self, names: tuple[str, str | None], owner: Mapping[str, int], module: nn.Conv2d) -> None:
        super().__init__(names, owner)
        self._how = module.stride, cast("tuple[int, ...]", module.padding), module.dilation
        self._groups = module.groups

    def forward(self, x: Tensor) -> Tensor:
        """Compute the result."""
        return functional.conv2d(x, self.weight, self.bias, *self._how, self._groups)

    def grad_input(self, x: Tensor, y: Tensor, grad_output: Tensor) -> Tensor:
        """Return the gradient with respect to the first rows of `x`."""
        return self._backward(x[: len(grad_output)], grad_output, (True, False, False))[0]

    def grad_params(self, out: Mapping[str, Tensor], x: Tensor, grad_output: Tensor) -> None:
        """Write the gradients with respect to what is trained into `out`."""
        weight, bias = (name is not None for name in self.trained)
        found = self._backward(x, grad_output, (False, weight, bias))[1:]
        for name, gradient in zip(self.trained, found, strict=True):
            if name is not None:
                out[name].copy_(gradient)

    def _backward(self, x: Tensor, grad_output: Tensor, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
        """Return the `wanted` gradients: with respect to input, weight and bias."""
        channels, transposed, output_padding = [len(self.weight)], False, (0, 0)
        gradients: tuple[Tensor, ...] = _convolution_backward(
            grad_output, x, self.weight, channels, *self._how, transposed, output_padding, self._groups, wanted
        )
        return gradients


def _relu_grad_input(_: Tensor, y: Tensor, grad_output: Tensor) -> Tensor:
    """Return the gradient with respect to the input of a ReLU, in the memory of `grad_output`."""
    own = y[: len(grad_output)]
    if grad_output.numel() < _SMALL_GRADIENT:
        return grad_output.mul_(own.sign())
    result: Tensor = _threshold_backward(grad_output, own, 0, grad_input=grad_output)
    return result


def _as_matrix(rows: Tensor) -> Tensor:
    """Return rows of shape (…, features) as a matrix."""
    return rows if rows.ndim == 2 else rows.flatten(0, -2)
