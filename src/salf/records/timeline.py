"""Who did what when in one round: a value that can be kept in a file and drawn later, without the model or the data."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from salf.values import STRICT

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Activity = Literal["receive", "forward", "backward", "send"]


@validated(frozen=True, config=STRICT)
class Span:
    """Something that a client did from `start_s` to `end_s`, in seconds from the start of the round.

    `layer` is the place of the layer whose backward pass it was, counted from 0 at the input; None for anything else.
    `counted` says whether it entered the model, `cut` whether the end of the round interrupted it.
    """

    activity: Activity
    start_s: Seconds
    end_s: Seconds
    counted: bool
    cut: bool = False
    layer: Count | None = None


@validated(frozen=True, config=STRICT)
class ClientLine:
    """What one client did in a round; `depth` is how many layers it conveyed."""

    client: Count
    depth: Count
    spans: tuple[Span, ...]


@validated(frozen=True, config=STRICT)
class TimeLine:
    """One round: what each client did until `end_s`, when the round was over.

    `layers` are the layers' names, input to output, `clients` is how many clients were asked; `lines` holds some of
    them where they are many, sorted from the one that conveyed most to the one that conveyed least. `deadline_s` is
    None where there was no deadline. `round` is None, and `lines` is empty, for a method without rounds.
    """

    layers: tuple[str, ...]
    round: Annotated[int, Field(ge=1)] | None = None
    clients: Count = 0
    deadline_s: Seconds | None = None
    end_s: Seconds = 0.0
    lines: tuple[ClientLine, ...] = ()

    def to_json(self) -> bytes:
        """Return it as JSON.

        >>> line = TimeLine(("0",), 3, 1, None, 2.0, (ClientLine(0, 1, (Span("send", 1.5, 2.0, True),)),))
        >>> TimeLine.from_json(line.to_json()) == line
        True
        """
        return _ADAPTER.dump_json(self)

    @classmethod
    def from_json(cls, content: bytes) -> "TimeLine":
        """Read what `to_json` wrote. Raises `ValueError` for anything else."""
        return _ADAPTER.validate_json(content)


_ADAPTER = TypeAdapter(TimeLine)
