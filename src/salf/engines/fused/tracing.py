"""A model as a list of operations, each of which is known to treat every example of a batch by itself."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from salf.engines.accelerator import draw_states, fork_rng
from salf.errors import UnsuitableModel


@dataclass(frozen=True)
class Layout:
    """A tensor that has the examples along `dim`, `rows` of them to each example, one example after the other."""

    dim: int
    rows: int


@dataclass(frozen=True)
class Shared:
    """A tensor that is the same for every batch, such as a parameter."""


@dataclass(frozen=True)
class Count:
    """A number that is `rows` times the number of examples."""

    rows: int


@dataclass(frozen=True)
class Constant:
    """A value that is no tensor, and the same for every batch."""

    value: object


Shape = Layout | Shared | Count | Constant | tuple["Shape", ...]


@dataclass(frozen=True)
class Traced:
    """The operations of `model` in training mode, and what the result of each has to do with the examples of a batch.

    `bytes_per_example` is how much memory all results take together; what looks into the memory of another takes none.
    """

    model: nn.Module
    graph: fx.Graph
    shapes: Mapping[fx.Node, Shape]
    bytes_per_example: int


def trace_rows(model: nn.Module, examples: Tensor) -> Traced:
    """Trace a copy of `model`, and run it on the first two and on the first three of `examples`.

    Raises `UnsuitableModel` for a model that cannot be traced symbolically, that mixes examples other than by batch
    normalisation, or that draws random numbers, so that it could not give the same numbers for many clients at once.
    """
    twin = copy.deepcopy(model).train()
    try:
        graph = fx.Tracer().trace(twin)
        with fork_rng(examples.device), torch.no_grad():
            before = draw_states(examples.device)
            two, three = (_watch(twin, graph, examples[:count].clone()) for count in (2, 3))
            draws = not all(map(torch.equal, before, draw_states(examples.device)))
    except Exception as error:  # whatever the user's code raises when it is traced
        text = " ".join(str(error).split())[:200]
        raise _unsuitable(model, f"its operations cannot be listed ({type(error).__name__}: {text})") from error
    if draws:
        raise _unsuitable(model, "it draws random numbers")
    shapes: dict[fx.Node, Shape] = {}
    for node in graph.nodes:
        shape = _compare(two[node], three[node])
        from_rows = any(_holds(shapes[source], Layout) for source in node.all_input_nodes)
        if shape is None or (from_rows and _holds(shape, Shared)):
            raise _unsuitable(model, f"'{node.name}' does not treat each example of a batch by itself")
        shapes[node] = shape
    return Traced(twin, graph, shapes, _bytes(three.values()) - _bytes(two.values()))


def _unsuitable(model: nn.Module, reason: str) -> UnsuitableModel:
    return UnsuitableModel(f"{type(model).__name__} cannot be trained for many clients in one pass", [reason])


def _watch(model: nn.Module, graph: fx.Graph, batch: Tensor) -> dict[fx.Node, object]:
    """Return the result of every node of the graph."""
    results: dict[fx.Node, object] = {}

    class ShapeRecorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            results[n] = super().run_node(n)
            return results[n]

    ShapeRecorder(model, garbage_collect_values=False, graph=graph).run(batch)
    return results


def _compare(two: object, three: object) -> Shape | None:
    """Describe a result, given what it is for two and for three examples; None if that cannot be described."""
    if isinstance(two, Tensor) and isinstance(three, Tensor) and two.ndim == three.ndim:
        differing = [dim for dim in range(two.ndim) if two.shape[dim] != three.shape[dim]]
        if not differing:
            return Shared()
        rows, rest = divmod(two.shape[differing[0]], 2)
        fits = len(differing) == 1 and not rest and three.shape[differing[0]] == 3 * rows
        return Layout(differing[0], rows) if fits else None
    if isinstance(two, (tuple, list)) and isinstance(three, (tuple, list)):
        parts = [_compare(few, more) for few, more in zip(two, three, strict=False)]
        return tuple(parts) if len(two) == len(three) and None not in parts else None  # type: ignore[arg-type]
    if isinstance(two, int) and isinstance(three, int) and two != three:
        return Count(two // 2) if two * 3 == three * 2 and two % 2 == 0 else None
    return Constant(two) if type(two) is type(three) and two == three else None


def _holds(shape: Shape, kind: type) -> bool:
    return any(_holds(part, kind) for part in shape) if isinstance(shape, tuple) else isinstance(shape, kind)


def _bytes(results: Iterable[object]) -> int:
    storages = [tensor.untyped_storage() for tensor in _tensors(results)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
