"""A model as a list of operations that are known to treat each example of a batch by itself."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from salf.engines.accelerator import draw_states, fork_rng
from salf.engines.tasks import REMEDY
from salf.errors import UnsuitableModel


@dataclass(frozen=True)
class Layout:
    """A tensor that has the examples along `dim`, one after the other, with `rows` rows for each."""

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
    """The operations of a model in training mode.

    Attributes:
        model: The model.
        graph: Its operations.
        shapes: How the result of each operation depends on the examples of a batch.
        bytes_per_example: The memory of all results together; views of other results take none.
    """

    model: nn.Module
    graph: fx.Graph
    shapes: Mapping[fx.Node, Shape]
    bytes_per_example: int


def trace_rows(model: nn.Module, examples: Tensor) -> Traced:
    """Trace a copy of a model symbolically, and run it on two and on three examples.

    Args:
        model: The model; it is not changed.
        examples: Three examples, shape (3, …).

    Raises:
        UnsuitableModel: The model cannot be traced, mixes examples other than by batch normalization, or draws random
            numbers, so that it would not give the same numbers for many clients at once.
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
        raise unsuitable(model, f"its operations cannot be listed ({type(error).__name__}: {text})") from error
    if draws:
        raise unsuitable(model, "it draws random numbers")
    shapes: dict[fx.Node, Shape] = {}
    for node in graph.nodes:
        shape = _compare(two[node], three[node])
        from_rows = any(holds(shapes[source], Layout) for source in node.all_input_nodes)
        if shape is None or (from_rows and holds(shape, Shared)):
            raise unsuitable(model, f"'{node.name}' does not treat each example of a batch by itself")
        shapes[node] = shape
    return Traced(twin, graph, shapes, _bytes(three.values()) - _bytes(two.values()))


def unsuitable(model: nn.Module, reason: str) -> UnsuitableModel:
    """Return the error of a model that the fused engine cannot train, with its remedy."""
    return UnsuitableModel(f"{type(model).__name__} cannot be trained for many clients in one pass", [reason + REMEDY])


def _watch(model: nn.Module, graph: fx.Graph, batch: Tensor) -> dict[fx.Node, object]:
    """Return the result of every node of the graph."""
    interpreter = fx.Interpreter(model, garbage_collect_values=False, graph=graph)
    interpreter.run(batch)
    return interpreter.env


def _compare(two: object, three: object) -> Shape | None:
    """Describe a result, given its values for two and for three examples; None if no `Shape` describes it."""
    if isinstance(two, Tensor) and isinstance(three, Tensor) and two.ndim == three.ndim:
        differing = [dim for dim in range(two.ndim) if two.shape[dim] != three.shape[dim]]
        if not differing:
            return Shared()
        rows, rest = divmod(two.shape[differing[0]], 2)
        fits = len(differing) == 1 and not rest and three.shape[differing[0]] == 3 * rows
        return Layout(differing[0], rows) if fits else None
    if isinstance(two, (tuple, list)) and isinstance(three, (tuple, list)):
        parts = [_compare(few, more) for few, more in zip(two, three, strict=False)]
        known = tuple(part for part in parts if part is not None)
        return known if len(two) == len(three) == len(known) else None
    if isinstance(two, int) and isinstance(three, int) and two != three:
        return Count(two // 2) if two * 3 == three * 2 and two % 2 == 0 else None
    return Constant(two) if type(two) is type(three) and two == three else None


def holds(shape: Shape, *kinds: type) -> bool:
    """Say whether a shape is of one of these kinds, or contains one that is.

    >>> holds((Constant(1), Layout(dim=0, rows=1)), Layout), holds(Shared(), Layout)
    (True, False)
    """
    return any(holds(part, *kinds) for part in shape) if isinstance(shape, tuple) else isinstance(shape, kinds)


def _bytes(results: Iterable[object]) -> int:
    """Return the memory of all results together."""
    storages = [tensor.untyped_storage() for tensor in _tensors(results)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
