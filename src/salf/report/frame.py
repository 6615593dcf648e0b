"""The geometry of a page's figures; the template turns it into SVG."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

WIDTH = 420.0  # of every figure, in its own units: about a phone's width, so that text stays legible there


@dataclass(frozen=True)
class Frame:
    """The area between the axes of a figure.

    Attributes:
        left: The left edge, in the figure's units.
        top: The upper edge.
        right: The right edge.
        bottom: The lower edge.
        x: The values at the left and the right edge.
        y: The values at the lower and the upper edge.
    """

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float] = (0.0, 1.0)

    def at_x(self, value: float) -> float:
        """Return the place of a value on the horizontal axis."""
        low, high = self.x
        return self.left + (value - low) / ((high - low) or 1.0) * (self.right - self.left)

    def at_y(self, value: float) -> float:
        """Return the place of a value on the vertical axis."""
        low, high = self.y
        return self.bottom - (value - low) / ((high - low) or 1.0) * (self.bottom - self.top)


@dataclass(frozen=True)
class Picture:
    """What all figures of a page have.

    Attributes:
        caption: The heading above the figure.
        summary: The same content in words, for readers who do not see it.
        frame: The area between its axes.
    """

    caption: str
    summary: str
    frame: Frame


def path_through(points: Iterable[tuple[float, float]]) -> str:
    """Return an SVG path through points (x, y), rounded to a tenth.

    >>> path_through([(0.0, 1.0), (12.345, 6.0)])
    'M0 1L12.3 6'
    """
    return "M" + "L".join(f"{round(x, 1):g} {round(y, 1):g}" for x, y in points)


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
