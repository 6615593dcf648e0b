"""The arguments of a node of a traced model, in which references stand for the results of earlier nodes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from salf.engines.fused.tracing import Constant, Count, Layout, Shape, Shared


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
        return has_rows(self.shape)


def bind(argument: object, choose: Callable[[Ref], object], examples: int) -> object:
    """Replace references and counts in an argument.

    Args:
        argument: An argument of a node, or a container of several.
        choose: Gives the value of a reference.
        examples: The number of examples, of which counts are multiples.
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


def has_rows(shape: Shape) -> bool:
    """Say whether a result depends on the examples."""
    return any(map(has_rows, shape)) if isinstance(shape, tuple) else isinstance(shape, Layout)


def is_tensor(shape: Shape) -> bool:
    """Say whether a result is a tensor, or holds one."""
    return any(map(is_tensor, shape)) if isinstance(shape, tuple) else isinstance(shape, (Layout, Shared))


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
