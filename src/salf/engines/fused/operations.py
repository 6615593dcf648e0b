"""The operations of a nested pass: calls that are computed on rows in two parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from salf.engines.fused.rows import BatchIndependent, Ref, Rows, SortedClients, bind, cut, join
from salf.engines.fused.tracing import Layout, Shape

# The results of all nodes so far, by place; None for those that no later node needs.
Values = list[Any]
# Computes a node, given the results of all earlier ones.
Step = Callable[[Values, SortedClients], object]
# Gives what a node calls for examples from a place on, with gradient in some layers.
Operation = Callable[[frozenset[int], SortedClients, int], Callable[..., object]]
NO_LAYERS: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Call:
    """A node that calls something on rows.

    Attributes:
        operation: Gives what it calls.
        arguments: Its positional arguments.
        named: Its named arguments.
        rows: The references to rows among them.
        uses: The layers whose parameters it takes.
        shape: The shape of its result.
    """

    operation: Operation
    arguments: tuple[object, ...]
    named: Mapping[str, object]
    rows: tuple[Ref, ...]
    uses: frozenset[int]
    shape: Shape

    def __call__(self, values: Values, clients: SortedClients) -> Rows:
        """Compute the head, piece by piece with gradient in the layers that it reaches, and the tail."""
        ends = {layer: clients.reached(layer) for layer in self.uses}
        size = max([0, *ends.values(), *(values[ref.place].examples for ref in self.rows)])
        for ref in self.rows:
            values[ref.place] = values[ref.place].grown(size, ref.shape)
        pieces = []
        for start, end in pairwise(sorted({0, size, *(min(size, end) for end in ends.values())})):
            live = frozenset(layer for layer, reached in ends.items() if reached >= end)
            pieces.append(self._head(values, clients, start, end, live))
        tail = None
        if size < clients.examples:
            tail = self._compute(clients, size, clients.examples, NO_LAYERS, lambda ref: _frozen(values[ref.place]))
        return Rows(join(pieces, self.shape) if pieces else None, tail, size)

    def _head(self, values: Values, clients: SortedClients, start: int, end: int, live: frozenset[int]) -> object:
        """Compute a piece of the head, with gradient in the `live` layers."""
        factor = next((clients.factors[layer][start:end] for layer in live if layer in clients.factors), None)

        def choose(ref: Ref) -> object:
            value = values[ref.place]
            if isinstance(value, BatchIndependent):
                return value.live if ref.uses <= live else value.frozen
            if not isinstance(value, Rows):
                return value
            part = value.head if (start, end) == (0, value.examples) else cut(value.head, start, end - start, ref.shape)
            return part if factor is None else _scale_gradient(part, 1 / factor, ref.shape)

        result = self._compute(clients, start, end, live, choose)
        return result if factor is None else _scale_gradient(result, factor, self.shape)

    def _compute(
        self, clients: SortedClients, start: int, end: int, live: frozenset[int], choose: Callable[[Ref], object]
    ) -> object:
        arguments = [bind(argument, choose, end - start) for argument in self.arguments]
        named = {key: bind(argument, choose, end - start) for key, argument in self.named.items()}
        return self.operation(live, clients, start)(*arguments, **named)


def elementary(function: Callable[..., object], place: int) -> Step:
    """Return a call without parameters on the rows at `place` alone: both parts go through it unchanged."""

    def step(values: Values, _: SortedClients) -> Rows:
        rows = values[place]
        head, tail = (None if part is None else function(part) for part in (rows.head, rows.tail))
        return Rows(head, tail, rows.examples)

    return step


@dataclass(frozen=True, eq=False)
class LayerModule:
    """A module that is called on rows alone, and whose parameters are all of one layer.

    Attributes:
        live: The module with gradient.
        frozen: The module without.
        ref: The rows.
        layer: The layer.
        shape: The shape of the result.
        weighed: The same call, for rounds in which clients have their own weights in the layer.
    """

    live: nn.Module
    frozen: nn.Module
    ref: Ref
    layer: int
    shape: Shape
    weighed: Call

    def __call__(self, values: Values, clients: SortedClients) -> Rows:
        """Compute the examples that reach the layer, the rest of the head, and the tail."""
        if self.layer in clients.factors:
            return self.weighed(values, clients)
        reached, ref = clients.reached(self.layer), self.ref
        rows = values[ref.place] = values[ref.place].grown(reached, ref.shape)
        tail = None if rows.tail is None else self.frozen(rows.tail)
        if rows.examples == reached:
            return Rows(self.live(rows.head) if reached else None, tail, reached)
        beyond = self.frozen(cut(rows.head, reached, rows.examples - reached, ref.shape))
        if not reached:
            return Rows(beyond, tail, rows.examples)
        return Rows(join([self.live(cut(rows.head, 0, reached, ref.shape)), beyond], self.shape), tail, rows.examples)


def batch_independent(
    function: Callable[[bool], Callable[..., object]],
    arguments: tuple[object, ...],
    named: Mapping[str, object],
    uses: frozenset[int],
) -> Step:
    """Return a call whose arguments do not depend on the examples, with and without gradient if it has parameters.

    Args:
        function: Gives what it calls, with gradient or without.
        arguments: Its positional arguments.
        named: Its named arguments.
        uses: The layers whose parameters it takes.
    """

    def compute(values: Values, *, live: bool) -> object:
        def choose(ref: Ref) -> object:
            value = values[ref.place]
            return value if not isinstance(value, BatchIndependent) else value.live if live else value.frozen

        bound = [bind(argument, choose, 0) for argument in arguments]
        return function(live)(*bound, **{key: bind(value, choose, 0) for key, value in named.items()})

    def step(values: Values, _: SortedClients) -> object:
        frozen = compute(values, live=False)
        return BatchIndependent(compute(values, live=True), frozen) if uses else frozen

    return step


def _scale_gradient(part: object, factor: Tensor, shape: Shape) -> object:
    """Multiply each example's gradient in a part of a result by its own factor."""
    if isinstance(shape, tuple) and isinstance(part, (tuple, list)):
        return tuple(_scale_gradient(inner, factor, own) for inner, own in zip(part, shape, strict=True))
    if not isinstance(shape, Layout) or not isinstance(part, Tensor) or not part.requires_grad:
        return part
    sizes = [-1 if dim == shape.dim else 1 for dim in range(part.ndim)]
    own = factor.to(part.dtype).repeat_interleave(shape.rows).view(sizes)
    copy = part.clone()  # a view would not let the next operation work in place
    copy.register_hook(lambda gradient: gradient * own)  # type: ignore[no-untyped-call]  # - untyped in torch
    return copy


def _frozen(value: object) -> object:
    """Return a result without gradient: the tail of rows."""
    if isinstance(value, Rows):
        return value.tail
    return value.frozen if isinstance(value, BatchIndependent) else value
