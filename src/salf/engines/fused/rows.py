"""Results of a nested pass: in two parts, of which the first takes part in backpropagation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from salf.engines.fused.tracing import Layout, Shape

# Returns the gradient of what the clients minimise with respect to the model's outputs, given these.
GradOutput = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SortedClients:
    """The clients of one pass, the deepest first.

    `bounds` are the places at which each client's examples begin, and the end of the last; `reaching` is how many
    clients reach each layer, input to output. `factors`, for a layer for which clients weigh otherwise than in the
    loss, holds the factor by which each example's gradient shall count there.
    """

    bounds: Sequence[int]
    reaching: Sequence[int]
    factors: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        """The number of examples."""
        return self.bounds[-1]

    def reached(self, layer: int) -> int:
        """Return how many examples reach a layer."""
        return self.bounds[self.reaching[layer]]


@dataclass(slots=True)
class Rows:
    """A result whose `head` belongs to the first `examples` examples; a part without any is None.

    A part is a tensor, or a tuple of what an operation returns.
    """

    head: Any
    tail: Any
    examples: int

    def grown(self, examples: int, shape: Shape) -> "Rows":
        """Return the same result with so many examples in its head, none of them less than before."""
        more = examples - self.examples
        if more <= 0:
            return self
        size = count(self.tail, shape)
        moved = self.tail if more == size else cut(self.tail, 0, more, shape)
        tail = None if more == size else cut(self.tail, more, size - more, shape)
        return Rows(moved if self.head is None else join([self.head, moved], shape), tail, examples)


@dataclass(slots=True)
class BatchIndependent:
    """A result that depends on parameters but not on examples, and the same without gradient."""

    live: Any
    frozen: Any


def count(part: Any, shape: Shape) -> int:  # noqa: ANN401 - whatever an operation returns
    """Return how many examples a part holds; 0 if that does not show."""
    if isinstance(shape, tuple):
        return max((count(inner, own) for inner, own in zip(part, shape, strict=True)), default=0)
    return part.shape[shape.dim] // shape.rows if isinstance(shape, Layout) else 0


def cut(part: Any, start: int, length: int, shape: Shape) -> Any:  # noqa: ANN401
    """Return `length` examples of a part, from `start` on."""
    if isinstance(shape, tuple):
        return tuple(cut(inner, start, length, own) for inner, own in zip(part, shape, strict=True))
    if not isinstance(shape, Layout):
        return part
    return part.narrow(shape.dim, start * shape.rows, length * shape.rows)


def join(parts: Sequence[Any], shape: Shape) -> Any:  # noqa: ANN401
    """Return the examples of several parts, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(shape, tuple):
        return tuple(join([part[place] for part in parts], own) for place, own in enumerate(shape))
    return torch.cat(list(parts), shape.dim) if isinstance(shape, Layout) else parts[0]
