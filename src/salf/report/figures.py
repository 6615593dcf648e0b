"""The geometry of a page's figures, and what they show; the template turns it into SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from salf.records import Curve, curve_of
from salf.report.looks import Look
from salf.report.reported import RunGroup
from salf.values import Floats, Ints

WIDTH = 420.0  # of every figure, in its own units: about a phone's width, so that text stays legible there
LEVELS = 8  # of a heat map's colour, above none
_COLUMNS = 120  # of a heat map; with more rounds, a column is the mean of several
_POINTS = 200  # of a line; more cannot be told apart
_MARKS = 6  # along a line

# The quantities with their name on the axis and the factor to its unit, and what they are drawn against.
_QUANTITIES: tuple[tuple[Literal["accuracy", "loss"], str, float], ...] = (
    ("accuracy", "test accuracy (%)", 100.0),
    ("loss", "test loss", 1.0),
)
_AXES = (("seconds", "virtual time", "virtual time (s)"), ("rounds", "rounds", "round"))


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
class DrawnCurve:
    """The curve of one group.

    Attributes:
        label: The group's label.
        look: How it looks.
        ends: The mean at the first and the last point.
        line: The line of the mean, as an SVG path.
        band: The area from the worst run to the best, as an SVG path; empty if the runs agree.
        marks: The places of its marks.
    """

    label: str
    look: Look
    ends: tuple[float, float]
    line: str
    band: str
    marks: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class CurveFigure:
    """A figure with a curve for each group.

    Attributes:
        caption: The heading above the figure.
        frame: The area between its axes.
        x_label: The name of the horizontal axis.
        y_label: The name of the vertical axis.
        curves: The curves, from back to front.
        target: The value that a line marks; None for no line.
    """

    caption: str
    frame: Frame
    x_label: str
    y_label: str
    curves: Sequence[DrawnCurve]
    target: float | None


def draw_curves(groups: Sequence[RunGroup], target: float | None) -> list[CurveFigure]:
    """Draw accuracy and loss against virtual time and against rounds, where rounds were evaluated.

    Args:
        groups: The groups of the page.
        target: The accuracy to mark by a line, 0 to 1; None for no line.
    """
    figures = []
    for quantity, unit, scale in _QUANTITIES:
        drawn = {place: curve_of(group.curves, quantity).scaled(scale) for place, group in enumerate(groups)}
        curves = {place: curve for place, curve in drawn.items() if len(curve.rounds)}
        marked = scale * target if target is not None and quantity == "accuracy" else None
        for axis, against, x_label in _AXES if curves else ():
            end = max(float(getattr(curve, axis)[-1]) for curve in curves.values())
            frame = Frame(52, 34, WIDTH - 24, 244, (0.0, end or 1.0), _range([*curves.values()], marked))
            lines = [_draw_curve(frame, curve, axis, place, groups[place].label) for place, curve in curves.items()]
            figures.append(
                CurveFigure(f"{quantity.capitalize()} against {against}", frame, x_label, unit, lines, marked)
            )
    return figures


def _range(curves: Sequence[Curve], target: float | None) -> tuple[float, float]:
    """Return the values at the lower and the upper edge: all that is drawn, and a margin."""
    values = np.concatenate([*((curve.low, curve.high) for curve in curves)], axis=None)
    values = values if target is None else np.append(values, target)
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _draw_curve(frame: Frame, whole: Curve, axis: str, place: int, label: str) -> DrawnCurve:
    """Draw the curve of the group at a place, which determines its look."""
    curve = whole.thinned(_POINTS)
    xs = [frame.at_x(value) for value in getattr(curve, axis).tolist()]
    low, points, high = (
        [(x, frame.at_y(value)) for x, value in zip(xs, values.tolist(), strict=True)]
        for values in (curve.low, curve.mean, curve.high)
    )
    every = max(1, math.ceil(len(xs) / _MARKS))
    marks = points[place % every :: every]  # curves that coincide show each other's marks
    band = path_through([*high, *reversed(low)]) if low != high else ""
    return DrawnCurve(label, Look.of(place), (curve.mean[0], curve.mean[-1]), path_through(points), band, marks)


@dataclass(frozen=True)
class HeatMap:
    """A figure with a row for each layer and a column for each round, or for several.

    Attributes:
        caption: The group's label.
        frame: The area between its axes.
        x_label: The name of the horizontal axis.
        layers: The layers' names, input to output, with the mean number of clients that sent them.
        row: The height of a row.
        cells: All cells of a colour as one SVG path, by the colour's level from 1.
        clients: The number of clients that the last level stands for.
    """

    caption: str
    frame: Frame
    x_label: str
    layers: Sequence[tuple[str, float]]
    row: float
    cells: dict[int, str]
    clients: int


def draw_participation(group: RunGroup) -> HeatMap:
    """Draw how many clients sent each layer in each round: the mean over seeds, with the output layer on top."""
    rounds = min(len(run.records) for run in group.runs)
    counts = np.mean([[record.contributors for record in run.records[:rounds]] for run in group.runs], axis=0)
    clients = max(1, *(record.clients for record in group.records))
    names = group.runs[0].layers
    row = max(9.0, min(26.0, 260 / len(names)))
    frame = Frame(104, 10, WIDTH - 24, 10 + row * len(names), (0.0, float(rounds)))
    width = -(-rounds // _COLUMNS)
    levels = _levels(counts / clients, width)
    cells = {level: _cells(levels == level, width, frame, row) for level in range(1, LEVELS + 1)}
    x_label = "round" if width == 1 else f"round (a column is the mean of {width})"
    layers = [*zip(names, counts.mean(axis=0).tolist(), strict=True)]
    return HeatMap(group.label, frame, x_label, layers, row, cells, clients)


def _levels(shares: Floats, width: int) -> Ints:
    """Return the colour of each cell, 0 to `LEVELS`.

    Args:
        shares: The share of clients that sent each layer, shape (rounds, layers).
        width: How many rounds share a column.

    Returns:
        Levels of shape (layers, columns), with the output layer first.
    """
    columns = np.stack([shares[begin : begin + width].mean(axis=0) for begin in range(0, len(shares), width)])
    levels: Ints = np.ceil(LEVELS * np.clip(columns, 0.0, 1.0) - 1e-9).astype(np.int64)
    return levels.T[::-1]


def _cells(filled: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], width: int, frame: Frame, row: float) -> str:
    """Return the filled cells, shape (layers, columns), as one path; neighbours in a row are one rectangle."""
    steps = []
    for place, cells in enumerate(filled):
        edges = np.flatnonzero(np.diff(cells.astype(np.int8), prepend=0, append=0)) * width
        for begin, end in edges.reshape(-1, 2).tolist():
            left, right = frame.at_x(begin), frame.at_x(min(end, frame.x[1]))
            steps.append(f"M{left:.2f} {frame.top + row * place:.4g}h{right - left:.1f}v{row:.3g}h{left - right:.1f}Z")
    return "".join(steps)


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
