"""The operations of a traced model, made ready to be computed on rows in two parts, again and again."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from salf.engines.fused.client_norm import ClientNorm
from salf.engines.fused.pooling import FastPool, has_fast_form
from salf.engines.fused.rows import BatchIndependent, Rows, SortedClients, cut, join
from salf.engines.fused.tracing import Constant, Count, Layout, Shape, Shared, Traced
from salf.errors import UnsuitableModel

# Computes a node, given the results of all earlier ones.
Step = Callable[[list[Any], SortedClients], Any]
# What a node calls, for examples from a place on, with gradient in some layers.
Operation = Callable[[frozenset[int], SortedClients, int], Callable[..., Any]]
_NOWHERE: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Ref:
    """Stands in a node's arguments for the result of the node at `place`, which takes parameters of layers `uses`."""

    place: int
    shape: Shape
    uses: frozenset[int]

    @property
    def has_rows(self) -> bool:
        """Whether the result depends on the examples."""
        return _has_rows(self.shape)


@dataclass(frozen=True, eq=False)
class Call:
    """A node that calls something on rows; it takes parameters of the layers `uses`."""

    operation: Operation
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    rows: tuple[Ref, ...]
    uses: frozenset[int]
    shape: Shape

    def __call__(self, values: list[Any], crowd: SortedClients) -> Rows:
        """Compute the head, piece by piece with gradient in the layers that it reaches, and the tail."""
        ends = {layer: crowd.reached(layer) for layer in self.uses}
        size = max([0, *ends.values(), *(values[ref.place].examples for ref in self.rows)])
        for ref in self.rows:
            values[ref.place] = values[ref.place].grown(size, ref.shape)
        pieces = []
        for start, end in pairwise(sorted({0, size, *(min(size, end) for end in ends.values())})):
            live = frozenset(layer for layer, reached in ends.items() if reached >= end)
            pieces.append(self._head(values, crowd, start, end, live))
        tail = None
        if size < crowd.examples:
            tail = self._compute(crowd, size, crowd.examples, _NOWHERE, lambda ref: _frozen(values[ref.place]))
        return Rows(join(pieces, self.shape) if pieces else None, tail, size)

    def _head(self, values: list[Any], crowd: SortedClients, start: int, end: int, live: frozenset[int]) -> Any:  # noqa: ANN401
        factor = next((crowd.factors[layer][start:end] for layer in live if layer in crowd.factors), None)

        def choose(ref: Ref) -> Any:  # noqa: ANN401
            value = values[ref.place]
            if isinstance(value, BatchIndependent):
                return value.live if ref.uses <= live else value.frozen
            if not isinstance(value, Rows):
                return value
            part = value.head if (start, end) == (0, value.examples) else cut(value.head, start, end - start, ref.shape)
            return part if factor is None else _scale_gradient(part, 1 / factor, ref.shape)

        result = self._compute(crowd, start, end, live, choose)
        return result if factor is None else _scale_gradient(result, factor, self.shape)

    def _compute(
        self, crowd: SortedClients, start: int, end: int, live: frozenset[int], choose: Callable[[Ref], Any]
    ) -> Any:  # noqa: ANN401
        arguments = [_bind(argument, choose, end - start) for argument in self.arguments]
        named = {key: _bind(argument, choose, end - start) for key, argument in self.named.items()}
        return self.operation(live, crowd, start)(*arguments, **named)


@dataclass(frozen=True, eq=False)
class Elementary:
    """A call without parameters whose first argument alone is rows: both parts go through it as they are."""

    function: Callable[..., Any]
    place: int

    def __call__(self, values: list[Any], crowd: SortedClients) -> Rows:
        """Compute both parts."""
        rows, function = values[self.place], self.function
        return Rows(
            None if rows.head is None else function(rows.head),
            None if rows.tail is None else function(rows.tail),
            rows.examples,
        )


@dataclass(frozen=True, eq=False)
class OneLayer:
    """A module that is called on rows alone, and whose parameters are all of one layer."""

    live: nn.Module
    frozen: nn.Module
    ref: Ref
    layer: int
    shape: Shape
    weighed: Call

    def __call__(self, values: list[Any], crowd: SortedClients) -> Rows:
        """Compute the examples that reach the layer, the rest of the head, and the tail."""
        if self.layer in crowd.factors:
            return self.weighed(values, crowd)
        reached, ref = crowd.reached(self.layer), self.ref
        rows = values[ref.place] = values[ref.place].grown(reached, ref.shape)
        tail = None if rows.tail is None else self.frozen(rows.tail)
        if rows.examples == reached:
            return Rows(self.live(rows.head) if reached else None, tail, reached)
        beyond = self.frozen(cut(rows.head, reached, rows.examples - reached, ref.shape))
        if not reached:
            return Rows(beyond, tail, rows.examples)
        return Rows(join([self.live(cut(rows.head, 0, reached, ref.shape)), beyond], self.shape), tail, rows.examples)


@dataclass(frozen=True, eq=False)
class Constantly:
    """A call whose arguments do not depend on the examples."""

    function: Callable[[bool], Callable[..., Any]]
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    uses: frozenset[int]

    def __call__(self, values: list[Any], crowd: SortedClients) -> Any:  # noqa: ANN401
        """Compute it, with and without gradient if it depends on parameters."""
        if not self.uses:
            return self._compute(values, live=False)
        return BatchIndependent(self._compute(values, live=True), self._compute(values, live=False))

    def _compute(self, values: list[Any], *, live: bool) -> Any:  # noqa: ANN401
        def choose(ref: Ref) -> Any:  # noqa: ANN401
            value = values[ref.place]
            return value if not isinstance(value, BatchIndependent) else value.live if live else value.frozen

        arguments = [_bind(argument, choose, 0) for argument in self.arguments]
        return self.function(live)(*arguments, **{key: _bind(value, choose, 0) for key, value in self.named.items()})


class Compiler:
    """Turns the nodes of a traced model into steps.

    `owner` maps the parameters that are trained to their layers, `norms` the names of BatchNorm modules to what stands
    in for them. `done_with` lists, for each node, the places whose results nobody needs after it.
    """

    def __init__(
        self, traced: Traced, frozen: nn.Module, owner: Mapping[str, int], norms: Mapping[str, ClientNorm]
    ) -> None:
        self._live, self._frozen, self._owner, self._norms = traced.model, frozen, owner, norms
        self._shapes = traced.shapes
        self._place = {node: place for place, node in enumerate(traced.graph.nodes)}
        self._uses: dict[fx.Node, frozenset[int]] = {}
        last = {source: node for node in traced.graph.nodes for source in node.all_input_nodes}
        ends: dict[fx.Node, list[int]] = {}
        for source, node in last.items():
            ends.setdefault(node, []).append(self._place[source])
        self.done_with = [tuple(ends.get(node, ())) for node in traced.graph.nodes]
        # Whether no operation belongs to several layers.
        self.layers_apart = True

    def step(self, node: fx.Node) -> Step:
        """Make one node ready; nodes come in the order of the graph."""
        shape = self._shapes[node]
        self._uses[node] = _NOWHERE
        if node.op == "output":
            return _Output(self._bind_later(node.args[0]))
        if node.op == "placeholder" or not _is_tensor(shape):
            return lambda values, crowd: None  # noqa: ARG005
        if node.op == "get_attr":
            return self._attribute(node)
        arguments, named = self._bind_later(node.args), self._bind_later(node.kwargs)
        refs = tuple(_refs((arguments, tuple(named.values()))))
        own = self._layers_of_module(node)
        uses = frozenset({*own.values(), *(layer for ref in refs if not ref.has_rows for layer in ref.uses)})
        if not any(ref.has_rows for ref in refs) and not _has_rows(shape):
            if len(uses) > 1:
                raise UnsuitableModel(
                    "it cannot be trained for many clients in one pass", [f"'{node.name}' is made from several layers"]
                )
            self._uses[node] = uses
            return Constantly(lambda live: self._function(node, live=live), arguments, named, uses)
        self.layers_apart &= len(uses) <= 1
        return self._call(node, arguments, named, refs, own, uses)

    def _call(
        self,
        node: fx.Node,
        arguments: tuple[Any, ...],
        named: Mapping[str, Any],
        refs: tuple[Ref, ...],
        own: Mapping[str, int],
        uses: frozenset[int],
    ) -> Step:
        shape = self._shapes[node]
        rows = tuple(ref for ref in refs if ref.has_rows)
        if node.op == "call_module" and node.target in self._norms:
            return Call(self._norm(node), arguments, named, rows, uses, shape)
        alone = len(refs) == 1 and not _counts((arguments, tuple(named.values()))) and arguments[:1] == (refs[0],)
        if alone and not uses:
            function = self._function(node, live=True)
            if isinstance(function, nn.MaxPool2d) and has_fast_form(function):
                function = FastPool(function)
            if arguments[1:] or named:
                function = _with(function, arguments[1:], named)
            return Elementary(function, refs[0].place)
        call = Call(self._operation(node, own), arguments, named, rows, uses, shape)
        if alone and len(uses) == 1 and node.op == "call_module" and not arguments[1:] and not named:
            live, frozen = (model.get_submodule(str(node.target)) for model in (self._live, self._frozen))
            return OneLayer(live, frozen, refs[0], next(iter(uses)), shape, call)
        return call

    def _function(self, node: fx.Node, *, live: bool) -> Callable[..., Any]:
        if node.op == "call_module":
            return (self._live if live else self._frozen).get_submodule(str(node.target))
        if node.op == "call_method":
            return _method(str(node.target))
        return node.target  # type: ignore[return-value]

    def _operation(self, node: fx.Node, own: Mapping[str, int]) -> Operation:
        """Return what gives the function to call: the module with gradient in all its layers, in none, or in some."""
        alive, frozen = self._function(node, live=True), self._function(node, live=False)
        mine = frozenset(own.values())

        def choose(live: frozenset[int], crowd: SortedClients, start: int) -> Callable[..., Any]:  # noqa: ARG001
            if not mine or mine <= live:
                return alive
            if not mine & live:
                return frozen
            module = self._live.get_submodule(str(node.target))
            some = {name: module.get_parameter(name) for name, layer in own.items() if layer in live}
            return lambda *arguments, **named: functional_call(frozen, some, arguments, named)  # type: ignore[arg-type]

        return choose

    def _norm(self, node: fx.Node) -> Operation:
        norm = self._norms[str(node.target)]
        alive, frozen = (model.get_submodule(str(node.target)) for model in (self._live, self._frozen))
        own = frozenset(self._layers_of_module(node).values())

        def choose(live: frozenset[int], crowd: SortedClients, start: int) -> Callable[..., Any]:
            module = alive if own and own <= live else frozen
            weight, bias = cast("tuple[Tensor | None, Tensor | None]", (module.weight, module.bias))
            return lambda x: norm(x, weight, bias, crowd.bounds, start)

        return choose

    def _layers_of_module(self, node: fx.Node) -> dict[str, int]:
        """Map the parameters of the module that a node calls, named within it, to their layers."""
        if node.op != "call_module":
            return {}
        module = self._live.get_submodule(str(node.target))
        names = {id(value): name for name, value in self._live.named_parameters()}
        return {
            own: self._owner[names[id(value)]]
            for own, value in module.named_parameters()
            if names[id(value)] in self._owner
        }

    def _attribute(self, node: fx.Node) -> Step:
        live, frozen = (_attribute(model, str(node.target)) for model in (self._live, self._frozen))
        names = {id(value): name for name, value in self._live.named_parameters()}
        owner = self._owner.get(names.get(id(live), ""))
        if owner is None:
            return lambda values, crowd: frozen  # noqa: ARG005
        self._uses[node] = frozenset({owner})
        return lambda values, crowd: BatchIndependent(live, frozen)  # noqa: ARG005

    def _bind_later(self, arguments: Any) -> Any:  # noqa: ANN401
        """Replace the nodes in arguments by references, or by what they are known to be."""
        return fx.node.map_arg(arguments, self._refer)

    def _refer(self, node: fx.Node) -> Any:  # noqa: ANN401
        shape = self._shapes[node]
        return Ref(self._place[node], shape, self._uses[node]) if _is_tensor(shape) else _number(shape)


@dataclass(frozen=True, eq=False)
class _Output:
    """The end of the graph: the outputs for all examples."""

    ref: Any

    def __call__(self, values: list[Any], crowd: SortedClients) -> Tensor:
        """Return the head, grown to all examples."""
        rows = values[self.ref.place]
        whole: Tensor = rows.grown(crowd.examples, self.ref.shape).head
        return whole


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(factor)
        return x.clone()  # a view would not let the next operation work in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


def _scale_gradient(part: Any, factor: Tensor, shape: Shape) -> Any:  # noqa: ANN401
    """Multiply each example's gradient in a part of a result by a factor of its own."""
    if isinstance(shape, tuple):
        return tuple(_scale_gradient(inner, factor, own) for inner, own in zip(part, shape, strict=True))
    if not isinstance(shape, Layout) or not part.requires_grad:
        return part
    sizes = [-1 if dim == shape.dim else 1 for dim in range(part.ndim)]
    each = factor.to(part.dtype).repeat_interleave(shape.rows).view(sizes)
    return _ScaledGradient.apply(part, each)  # type: ignore[no-untyped-call]


def _frozen(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Rows):
        return value.tail
    return value.frozen if isinstance(value, BatchIndependent) else value


def _bind(argument: Any, choose: Callable[[Ref], Any], examples: int) -> Any:  # noqa: ANN401
    """Put results and counts of examples in their places."""
    if isinstance(argument, Ref):
        return choose(argument)
    if isinstance(argument, Count):
        return argument.rows * examples
    if isinstance(argument, (tuple, list)):
        return type(argument)(_bind(part, choose, examples) for part in argument)
    if isinstance(argument, dict):
        return {key: _bind(part, choose, examples) for key, part in argument.items()}
    if isinstance(argument, slice):
        return slice(*(_bind(part, choose, examples) for part in (argument.start, argument.stop, argument.step)))
    return argument


def _parts(argument: Any) -> Iterator[Any]:  # noqa: ANN401
    if isinstance(argument, (tuple, list)):
        for part in argument:
            yield from _parts(part)
    elif isinstance(argument, dict):
        yield from _parts(tuple(argument.values()))
    elif isinstance(argument, slice):
        yield from _parts((argument.start, argument.stop, argument.step))
    else:
        yield argument


def _refs(argument: Any) -> Iterator[Ref]:  # noqa: ANN401
    return (part for part in _parts(argument) if isinstance(part, Ref))


def _counts(argument: Any) -> bool:  # noqa: ANN401
    return any(isinstance(part, Count) for part in _parts(argument))


def _with(function: Callable[..., Any], rest: tuple[Any, ...], named: Mapping[str, Any]) -> Callable[..., Any]:
    return lambda x: function(x, *rest, **named)


def _method(name: str) -> Callable[..., Any]:
    return lambda x, *arguments, **named: getattr(x, name)(*arguments, **named)


def _attribute(model: nn.Module, path: str) -> Any:  # noqa: ANN401
    above, _, name = path.rpartition(".")
    return getattr(model.get_submodule(above), name)


def _number(shape: Shape) -> Any:  # noqa: ANN401
    if isinstance(shape, tuple):
        return tuple(map(_number, shape))
    return shape.value if isinstance(shape, Constant) else shape


def _is_tensor(shape: Shape) -> bool:
    return any(map(_is_tensor, shape)) if isinstance(shape, tuple) else isinstance(shape, (Layout, Shared))


def _has_rows(shape: Shape) -> bool:
    return any(map(_has_rows, shape)) if isinstance(shape, tuple) else isinstance(shape, Layout)
