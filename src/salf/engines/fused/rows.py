"""Results of a nested pass in two parts, and references to them; backpropagation goes through the first part only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from salf.engines.fused.tracing import Constant, Count, Layout, Shape, holds

# Returns the gradient of the clients' loss with respect to the model's outputs, given these.
GradOutput = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SortedClients:
    """The clients of one pass, the deepest first.

    Attributes:
        bounds: Where each client's examples begin, and the end of the last.
        reaching: How many clients reach each layer, input to output.
        factors: For a layer in which clients weigh other than in the last, the factor of each example's gradient
            there, shape (examples,).
    """

    bounds: Sequence[int]
    reaching: Sequence[int]
    factors: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        """The number of examples."""
        return self.bounds[-1]

    def reached(self, layer: int) -> int:
        """Return how many examples reach a layer.

        >>> SortedClients(bounds=[0, 4, 6], reaching=[1, 2]).reached(0)
        4
        """
        return self.bounds[self.reaching[layer]]


@dataclass(slots=True)
class Rows:
    """A result that depends on the examples.

    A part of it is a tensor, or a tuple of them for an operation that returns several; None if it holds no example.

    Attributes:
        head: The part of the first examples, which takes part in backpropagation.
        tail: The part of the others.
        examples: How many examples the head holds.
    """

    head: object
    tail: object
    examples: int

    def grown(self, examples: int, shape: Shape) -> "Rows":
        """Return the same result with at least so many examples in its head."""
        more = examples - self.examples
        if more <= 0:
            return self
        size = count(self.tail, shape)
        moved = self.tail if more == size else cut(self.tail, 0, more, shape)
        tail = None if more == size else cut(self.tail, more, size - more, shape)
        return Rows(moved if self.head is None else join([self.head, moved], shape), tail, examples)


@dataclass(slots=True)
class BatchIndependent:
    """A result that depends on parameters but not on examples: with gradient (`live`) and without (`frozen`)."""

    live: object
    frozen: object


def count(part: object, shape: Shape) -> int:
    """Return how many examples a part holds; 0 if its shape does not tell."""
    if isinstance(shape, tuple):
        return max((count(inner, own) for inner, own in zip(_several(part), shape, strict=True)), default=0)
    return part.shape[shape.dim] // shape.rows if isinstance(shape, Layout) and isinstance(part, Tensor) else 0


def cut(part: object, start: int, length: int, shape: Shape) -> object:
    """Return `length` examples of a part, from `start` on."""
    if isinstance(shape, tuple):
        return tuple(cut(inner, start, length, own) for inner, own in zip(_several(part), shape, strict=True))
    if isinstance(shape, Layout) and isinstance(part, Tensor):
        return part.narrow(shape.dim, start * shape.rows, length * shape.rows)
    return part


def join(parts: Sequence[object], shape: Shape) -> object:
    """Return the examples of several parts, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(shape, tuple):
        return tuple(join([_several(part)[place] for part in parts], own) for place, own in enumerate(shape))
    return torch.cat(cast("list[Tensor]", parts), shape.dim) if isinstance(shape, Layout) else parts[0]


def _several(part: object) -> Sequence[object]:
    """Return the results of an operation that returns several."""
    return cast("Sequence[object]", part)


@dataclass(frozen=True, eq=False)
class Ref:
    """Stands in a node's arguments for the result of another node.

    Attributes:
        place: The place of that node in the graph.
        shape: What the examples of a batch have to do with its result.
        uses: The layers whose parameters it takes.
    """

    place: int
    shape: Shape
    uses: frozenset[int]

    @property
    def has_rows(self) -> bool:
        """Whether the result depends on the examples."""
        return holds(self.shape, Layout)


def bind(argument: object, choose: Callable[[Ref], object], examples: int) -> object:
    """Replace references and counts in an argument.

    Args:
        argument: An argument of a node, or a container of several.
        choose: Gives the value of a reference.
        examples: The number of examples, which counts multiply.
    """
    if isinstance(argument, Ref):
        return choose(argument)
    if isinstance(argument, Count):
        return argument.rows * examples
    if isinstance(argument, (tuple, list)):
        return type(argument)(bind(part, choose, examples) for part in argument)
    if isinstance(argument, dict):
        return {key: bind(part, choose, examples) for key, part in argument.items()}
    if isinstance(argument, slice):
        return slice(*(bind(part, choose, examples) for part in (argument.start, argument.stop, argument.step)))
    return argument


def refs_in(argument: object) -> Iterator[Ref]:
    """Yield the references in an argument."""
    return (part for part in _parts(argument) if isinstance(part, Ref))


def has_counts(argument: object) -> bool:
    """Say whether an argument depends on the number of examples."""
    return any(isinstance(part, Count) for part in _parts(argument))


def number_of(shape: Shape) -> object:
    """Return a result that is no tensor: its value, or its count of rows."""
    if isinstance(shape, tuple):
        return tuple(map(number_of, shape))
    return shape.value if isinstance(shape, Constant) else shape


def _parts(argument: object) -> Iterator[object]:
    if isinstance(argument, (tuple, list)):
        for part in argument:
            yield from _parts(part)
    elif isinstance(argument, dict):
        yield from _parts(tuple(argument.values()))
    elif isinstance(argument, slice):
        yield from _parts((argument.start, argument.stop, argument.step))
    else:
        yield argument
