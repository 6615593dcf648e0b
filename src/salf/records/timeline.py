"""The timeline of one round, which can be saved and drawn later without the model or the data."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from salf.values import STRICT

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Activity = Literal["receive", "forward", "backward", "send"]


@validated(frozen=True, config=STRICT)
class Span:
    """One activity of a client.

    Attributes:
        activity: What the client did.
        start_s: Its start, in seconds from the start of the round.
        end_s: Its end.
        counted: Whether it contributed to the model.
        cut: Whether the end of the round interrupted it.
        layer: The layer of a backward pass, counted from 0 at the input; None for other activities.
    """

    activity: Activity
    start_s: Seconds
    end_s: Seconds
    counted: bool
    cut: bool = False
    layer: Count | None = None


@validated(frozen=True, config=STRICT)
class ClientLine:
    """The activities of one client in a round.

    Attributes:
        client: The client's number.
        depth: How many layers it sent.
        spans: What it did, in order.
    """

    client: Count
    depth: Count
    spans: tuple[Span, ...]


@validated(frozen=True, config=STRICT)
class TimeLine:
    """The activities of a round's clients.

    Attributes:
        layers: The layers' names, input to output.
        round: The number of the round; None for methods without rounds.
        clients: How many clients took part.
        deadline_s: The deadline, in seconds from the start of the round; None if there was none.
        end_s: When the round ended.
        lines: The clients, or some of them if they are many, sorted from the most layers sent to the fewest.
    """

    layers: tuple[str, ...]
    round: Annotated[int, Field(ge=1)] | None = None
    clients: Count = 0
    deadline_s: Seconds | None = None
    end_s: Seconds = 0.0
    lines: tuple[ClientLine, ...] = ()

    def to_json(self) -> bytes:
        """Return the timeline as JSON.

        >>> line = TimeLine(("0",), 3, 1, None, 2.0, (ClientLine(0, 1, (Span("send", 1.5, 2.0, True),)),))
        >>> TimeLine.from_json(line.to_json()) == line
        True
        """
        return _ADAPTER.dump_json(self)

    @classmethod
    def from_json(cls, content: bytes) -> "TimeLine":
        """Read what `to_json` wrote.

        Raises:
            ValueError: The content is anything else.
        """
        return _ADAPTER.validate_json(content)


_ADAPTER = TypeAdapter(TimeLine)
