"""Small pictures as SVG elements within a page, coloured by the page's style sheet, in light and in dark."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 420.0  # of every picture, in its own units: a phone's width, so that letters stay legible there


def number(value: float) -> str:
    """Write a coordinate to a tenth.

    >>> number(3.0), number(12.3456)
    ('3', '12.3')
    """
    return f"{round(value, 1):g}"


def text(x: float, y: float, content: str, anchor: str = "middle") -> str:
    """Return a line of text."""
    return f'<text x="{number(x)}" y="{number(y)}" text-anchor="{anchor}">{escape(content)}</text>'


def rectangle(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> str:
    """Return a rectangle of a class of the style sheet, with a title that shows where a pointer rests."""
    place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}" class="{kind}"'
    return f"<rect {place}><title>{escape(title)}</title></rect>" if title else f"<rect {place}/>"


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line of a class of the style sheet."""
    return f'<line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}" class="{kind}"/>'


def path(points: Iterable[tuple[float, float]], kind: str, *, closed: bool = False) -> str:
    """Return a line through points, or the area within."""
    steps = "L".join(f"{number(x)} {number(y)}" for x, y in points)
    return f'<path d="M{steps}{"Z" if closed else ""}" class="{kind}"/>'


def figure(caption: str, summary: str, height: float, parts: Iterable[str]) -> str:
    """Return a figure: a picture with its heading, and a summary in words for those who do not see it."""
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><svg viewBox="0 0 {number(WIDTH)} {number(height)}" '
        f'role="img" aria-label="{escape(summary)}">{"".join(parts)}</svg></figure>\n'
    )


def shortened(name: str, length: int) -> str:
    """Fit a name into a line of so many letters.

    >>> shortened("features.0.weight", 10)
    'features.…'
    """
    return name if len(name) <= length else f"{name[: length - 1]}…"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers between two others.

    >>> ticks(0.0, 97.0)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    rough = max(high - low, 1e-12) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


@dataclass(frozen=True)
class Frame:
    """The area of a picture with two axes: its edges in the picture's units, and the values at them."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at_x(self, value: float) -> float:
        """Return where a value of the horizontal axis is."""
        low, high = self.x
        return self.left + (value - low) / ((high - low) or 1.0) * (self.right - self.left)

    def at_y(self, value: float) -> float:
        """Return where a value of the vertical axis is."""
        low, high = self.y
        return self.bottom - (value - low) / ((high - low) or 1.0) * (self.bottom - self.top)

    def x_axis(self, label: str) -> list[str]:
        """Return the horizontal axis with its numbers and its name."""
        places = ticks(*self.x)
        return [
            line(self.left, self.bottom, self.right, self.bottom, "axis"),
            *(text(self.at_x(place), self.bottom + 18, f"{place:g}") for place in places),
            text((self.left + self.right) / 2, self.bottom + 37, label),
        ]

    def y_axis(self, label: str, write: Callable[[float], str] = "{:g}".format) -> list[str]:
        """Return the vertical axis with its numbers, lines across, and its name above."""
        places: Sequence[float] = ticks(*self.y)
        return [
            *(line(self.left, self.at_y(place), self.right, self.at_y(place), "grid") for place in places),
            *(text(self.left - 6, self.at_y(place) + 5, write(place), "end") for place in places),
            text(4, self.top - 10, label, "start"),
        ]
