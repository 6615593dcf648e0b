"""Models that are a chain of well-known operations, differentiated by hand.

In a chain each result is needed by the next operation alone. Every operation can then compute the examples of all
clients in one call, and on the way back the first rows of each result are taken, those of the clients that reach what
comes before. That spares what a nested pass costs beyond the arithmetic, which in small models is most of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise, takewhile
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from salf.engines.fused.client_norm import ClientNorm
from salf.engines.fused.pooling import FastPool, has_fast_form
from salf.engines.fused.rows import GradOutput, SortedClients
from salf.engines.fused.stock import is_stock_module
from salf.engines.fused.tracing import Layout, Traced
from salf.layers import Layers

# Looking an operation up takes longer than a small one.
_threshold_backward = torch.ops.aten.threshold_backward.grad_input
_convolution_backward = torch.ops.aten.convolution_backward.default
# From so many on, two threads multiply them a third faster the other way round.
_MANY_ROWS = 2048
# Fewer columns than these are multiplied several times slower than as many rows, as long as the rest is small.
_FEW_COLUMNS, _SMALL = 16, 2**21
# For fewer numbers, two functions that Python knows are faster than the one that fits but has to be looked up.
_SMALL_SLOPE = 2**15
_FLATTENING: tuple[object, ...] = (torch.flatten, "flatten")
_RECTIFYING: tuple[object, ...] = (torch.relu, functional.relu, "relu")


class Op(ABC):
    """One operation of a chain."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Compute the result for all examples, without gradient."""

    @abstractmethod
    def grad_input(self, x: Tensor, y: Tensor, grad_output: Tensor) -> Tensor:
        """Return the gradient with respect to the first rows of `x`, given that of those of the result `y`.

        There are as many of them as `grad_output` has; it is used up.
        """


class Weighted(Op):
    """An operation with a weight and perhaps a bias, whose `names` are given; `layer` is None if neither is trained."""

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
    def grad_params(self, room: Mapping[str, Tensor], x: Tensor, grad_output: Tensor) -> None:
        """Write the gradients with respect to what is trained into a `room` for them."""

    def room(self) -> dict[str, Tensor]:
        """Return memory for the gradients with respect to what is trained, by name, with nothing in it yet."""
        values = zip(self.trained, (self.weight, self.bias), strict=True)
        return {name: torch.empty_like(value) for name, value in values if name is not None and value is not None}

    def gradients(self, x: Tensor, grad_output: Tensor) -> dict[str, Tensor]:
        """Return the gradients with respect to what is trained, by name."""
        room = self.room()
        self.grad_params(room, x, grad_output)
        return room


class Dense(Weighted):
    """`nn.Linear`."""

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

    def grad_params(self, room: Mapping[str, Tensor], x: Tensor, grad_output: Tensor) -> None:
        """Write the gradients with respect to what is trained into a `room` for them."""
        x, grad_output, (weight, bias) = _as_matrix(x), _as_matrix(grad_output), self.trained
        if weight is not None and len(x) >= _MANY_ROWS and len(self.weight) >= _FEW_COLUMNS:
            room[weight].copy_(torch.mm(x.t(), grad_output).t())
        elif weight is not None:
            torch.mm(grad_output.t(), x, out=room[weight])
        if bias is not None:
            torch.sum(grad_output, 0, out=room[bias])


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
        gradient: Tensor = self._backward(x[: len(grad_output)], grad_output, (True, False, False))[0]
        return gradient

    def grad_params(self, room: Mapping[str, Tensor], x: Tensor, grad_output: Tensor) -> None:
        """Write the gradients with respect to what is trained into a `room` for them."""
        weight, bias = (name is not None for name in self.trained)
        found = self._backward(x, grad_output, (False, weight, bias))[1:]
        for name, gradient in zip(self.trained, found, strict=True):
            if name is not None:
                room[name].copy_(gradient)

    def _backward(self, x: Tensor, grad_output: Tensor, wanted: tuple[bool, bool, bool]) -> Any:  # noqa: ANN401
        channels, transposed, output_padding = [len(self.weight)], False, (0, 0)
        return _convolution_backward(
            grad_output, x, self.weight, channels, *self._how, transposed, output_padding, self._groups, wanted
        )


@dataclass(frozen=True)
class ReLU(Op):
    """ReLU; `in_place` if nobody needs what it is given."""

    in_place: bool

    def forward(self, x: Tensor) -> Tensor:
        """Compute the result."""
        return x.relu_() if self.in_place else x.relu()

    def grad_input(self, x: Tensor, y: Tensor, grad_output: Tensor) -> Tensor:
        """Return the gradient with respect to the first rows of `x`, in the memory of `grad_output`."""
        own = y[: len(grad_output)]
        if grad_output.numel() < _SMALL_SLOPE:
            return grad_output.mul_(own.sign())
        result: Tensor = _threshold_backward(grad_output, own, 0, grad_input=grad_output)
        return result


@dataclass(frozen=True)
class Flattening(Op):
    """`nn.Flatten`, and whatever else gives an example's numbers another shape."""

    function: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """Compute the result."""
        return self.function(x)

    def grad_input(self, x: Tensor, y: Tensor, grad_output: Tensor) -> Tensor:
        """Return the gradient with respect to the first rows of `x`."""
        return grad_output.reshape(len(grad_output), *x.shape[1:])


@dataclass(frozen=True)
class Recomputed(Op):
    """A function without parameters, computed again on the way back, with gradient, for the examples that need it."""

    function: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """Compute the result."""
        return self.function(x)

    def grad_input(self, x: Tensor, y: Tensor, grad_output: Tensor) -> Tensor:
        """Return the gradient with respect to the first rows of `x`."""
        leaf = x[: len(grad_output)].detach().requires_grad_()
        with torch.enable_grad():
            result = self.function(leaf)
        (gradient,) = torch.autograd.grad(result, leaf, grad_output)
        return gradient


@dataclass(frozen=True)
class Pooling(Op):
    """Max pooling that has a fast form."""

    pool: FastPool

    def forward(self, x: Tensor) -> Tensor:
        """Compute the result."""
        return self.pool(x)

    def grad_input(self, x: Tensor, y: Tensor, grad_output: Tensor) -> Tensor:
        """Return the gradient with respect to the first rows of `x`."""
        return self.pool.grad_input(x[: len(grad_output)], y[: len(grad_output)], grad_output)


class ChainPass:
    """Forward and backward pass of a chain over a crowd of clients.

    `parameters` are those that are trained, by name. Layers can weigh clients each in its own way, and what each client
    contributes can be told apart.
    """

    layers_apart = True
    clients_apart = True

    def __init__(self, links: Sequence[Op], parameters: Mapping[str, Tensor]) -> None:
        self.parameters = parameters
        self.norms: Mapping[str, ClientNorm] = {}
        self._weighted = [link for link in links if isinstance(link, Weighted)]
        # Inference mode spares a part of calling each operation, but nothing can have a gradient in it.
        recomputes = any(isinstance(link, Recomputed) for link in links)
        self._without_gradient = torch.no_grad if recomputes else torch.inference_mode
        self._flattenings = [*takewhile(lambda link: isinstance(link, Flattening), links)]
        # The other operations, each with the nearest layer before it, for whose sake the gradient has to pass.
        self._links: list[tuple[Op, int | None]] = []
        before: int | None = None
        for link in links[len(self._flattenings) :]:
            self._links.append((link, before))
            before = _layer(link, otherwise=before)

    def prepared(self, inputs: Tensor) -> Tensor:
        """Return a data set's inputs as a pass takes them: what gives them but another shape is done once for all.

        Nothing is copied, unless they lie in memory in such an order that giving them another shape takes a copy.
        """
        return reduce(lambda x, link: link.forward(x), self._flattenings, inputs)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Compute with these weights from now on; they are not copied."""
        for link in self._weighted:
            link.load(weights)

    def gradients(self, inputs: Tensor, crowd: SortedClients, slope_of: GradOutput) -> dict[str, Tensor]:
        """Return the sums over the crowd, by parameter, of the layers that anyone reaches."""
        # Made here, since what is made in inference mode cannot be written to afterwards.
        found: dict[str, Tensor] = {}
        for link in self._weighted:
            if link.layer is not None and crowd.reached(link.layer):
                found |= link.room()
        with self._without_gradient():
            for link, x, grad_output in self._walk(inputs, crowd, slope_of):
                factor = crowd.factors.get(cast("int", link.layer)) if crowd.factors else None
                link.grad_params(found, x, grad_output if factor is None else _scaled(grad_output, factor))
        return found

    @torch.no_grad()
    def gradients_of_each(self, inputs: Tensor, crowd: SortedClients, slope_of: GradOutput) -> list[dict[str, Tensor]]:
        """Return the gradients of each client, by name, of the layers that it reaches."""
        found: list[dict[str, Tensor]] = [{} for _ in crowd.bounds[1:]]
        for link, x, grad_output in self._walk(inputs, crowd, slope_of):
            for own, (start, end) in zip(found, pairwise(crowd.bounds), strict=True):
                if end > len(grad_output):
                    break
                own.update(link.gradients(x[start:end], grad_output[start:end]))
        return found

    def _walk(
        self, inputs: Tensor, crowd: SortedClients, slope_of: GradOutput
    ) -> Iterator[tuple[Weighted, Tensor, Tensor]]:
        """Take the gradient back from the outputs as far as anyone reaches.

        Yield each layer that is trained, what it is given by those that reach it, and the gradient of its result, which
        is used up afterwards.
        """
        results = [inputs]
        for link, _ in self._links:
            results.append(link.forward(results[-1]))
        grad_output, rows = slope_of(results[-1]), crowd.examples
        for place in range(len(self._links) - 1, -1, -1):
            link, before = self._links[place]
            x, y = results[place], results[place + 1]
            if isinstance(link, Weighted) and link.layer is not None:
                yield link, x if rows == crowd.examples else x[:rows], grad_output
            reached = 0 if before is None else crowd.reached(before)
            if not reached:
                break
            if reached < rows:
                grad_output = grad_output[:reached]
            rows = reached
            grad_output = link.grad_input(x, y, grad_output)


def find_chain(traced: Traced, layers: Layers) -> ChainPass | None:
    """Return the pass of a traced model that is a chain of operations known here; None if it is none."""
    _, *nodes, output = traced.graph.nodes
    nodes = cast("list[fx.Node]", nodes)
    # With the examples along the first dimension of each result, those of some clients are rows beside each other.
    by_rows = all(traced.shapes[node] == Layout(0, 1) for node in (*nodes, output))
    if not by_rows or not all(map(_follows, nodes)) or len(output.all_input_nodes) != 1 or layers.aliases:
        return None
    owner = {name: index for index, layer in enumerate(layers) for name in layer.parameters}
    links: list[Op] = []
    for node in nodes:
        link = _link(node, traced.model, owner, after=links[-1:])
        if link is None:
            return None
        links.append(link)
    order = [layer for layer in map(_layer, links) if layer is not None]
    targets = [node.target for node in nodes if node.op == "call_module"]
    if order != sorted(order) or len(set(targets)) < len(targets):
        return None
    return ChainPass(links, {name: value for name, value in traced.model.named_parameters() if name in owner})


def _follows(node: fx.Node) -> bool:
    """Say whether a node is called on the result of one other, and gives its own to one."""
    alone = len(node.users) == 1 and len(node.all_input_nodes) == 1 and node.args[:1] == (node.all_input_nodes[0],)
    return alone and (node.op != "call_module" or (len(node.args) == 1 and not node.kwargs))


def _link(node: fx.Node, model: nn.Module, owner: Mapping[str, int], *, after: Sequence[Op]) -> Op | None:
    """Return the operation of a node that comes after others; None for one that is not known here."""
    # What these give is needed by nobody but the next operation.
    in_place = isinstance(after[-1] if after else None, Weighted)
    if node.op == "call_module":
        name = str(node.target)
        return _link_of_module(name, model.get_submodule(name), owner, in_place=in_place)
    if node.target in _RECTIFYING:
        return ReLU(in_place)
    return Flattening(_flatten(node)) if node.target in _FLATTENING else None


def _link_of_module(name: str, module: nn.Module, owner: Mapping[str, int], *, in_place: bool) -> Op | None:
    if not is_stock_module(module):
        return None
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        return _weighted(name, module, owner)
    if isinstance(module, nn.ReLU):
        return ReLU(in_place)
    if isinstance(module, nn.Flatten):
        return Flattening(partial(torch.flatten, start_dim=module.start_dim, end_dim=module.end_dim))
    if isinstance(module, nn.MaxPool2d) and has_fast_form(module):
        return Pooling(FastPool(module))
    writes = getattr(module, "inplace", False)
    return None if writes or [*module.parameters(), *module.buffers()] else Recomputed(module)


def _weighted(name: str, module: nn.Linear | nn.Conv2d, owner: Mapping[str, int]) -> Weighted | None:
    names = f"{name}.weight", None if module.bias is None else f"{name}.bias"
    if len({owner[own] for own in names if own is not None and own in owner}) > 1:
        return None
    if isinstance(module, nn.Linear):
        return Dense(names, owner)
    padded_otherwise = isinstance(module.padding, str) or module.padding_mode != "zeros"
    return None if padded_otherwise else Convolution(names, owner, module)


def _flatten(node: fx.Node) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.flatten(x, *node.args[1:], **node.kwargs)  # type: ignore[arg-type]


def _layer(link: Op, otherwise: int | None = None) -> int | None:
    """Return the layer whose parameters an operation takes."""
    return link.layer if isinstance(link, Weighted) and link.layer is not None else otherwise


def _as_matrix(rows: Tensor) -> Tensor:
    return rows if rows.ndim == 2 else rows.flatten(0, -2)


def _scaled(grad_output: Tensor, factor: Tensor) -> Tensor:
    """Multiply each example's gradient by a factor of its own."""
    return grad_output * factor[: len(grad_output)].to(grad_output.dtype).view(-1, *[1] * (grad_output.ndim - 1))
