"""Curves of accuracy and loss: a line for each group's mean, and a band from its worst run to its best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from salf.records import Curve, curve_of
from salf.report.frame import WIDTH, Frame, Picture, path_through
from salf.report.looks import Look
from salf.report.reported import RunGroup

_POINTS = 200  # of a line; more cannot be told apart
_MARKS = 6  # along a line

# The quantities with their name on the axis and the factor to its unit, and what they are drawn against.
_QUANTITIES: tuple[tuple[Literal["accuracy", "loss"], str, float], ...] = (
    ("accuracy", "test accuracy (%)", 100.0),
    ("loss", "test loss", 1.0),
)
_AXES = {"seconds": ("virtual time", "virtual time (s)"), "rounds": ("rounds", "round")}


@dataclass(frozen=True)
class DrawnCurve:
    """The curve of one group.

    Attributes:
        label: The group's label.
        look: How it looks.
        line: The line of the mean, as an SVG path.
        band: The area from the worst run to the best, as an SVG path; empty if the runs agree.
        marks: The places of its marks.
    """

    label: str
    look: Look
    line: str
    band: str
    marks: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class CurvePicture(Picture):
    """A figure with a curve for each group.

    Attributes:
        x_label: The name of the horizontal axis.
        y_label: The name of the vertical axis.
        curves: The curves, from back to front.
        target: The value that a line marks; None for no line.
    """

    x_label: str
    y_label: str
    curves: Sequence[DrawnCurve]
    target: float | None


def draw_curves(groups: Sequence[RunGroup], target: float | None) -> list[CurvePicture]:
    """Draw accuracy and loss against virtual time and against rounds, where rounds were evaluated.

    Args:
        groups: The groups of the page.
        target: The accuracy to mark by a line, 0 to 1; None for no line.
    """
    pictures = []
    for quantity, unit, scale in _QUANTITIES:
        drawn = {place: curve_of(group.curves, quantity).scaled(scale) for place, group in enumerate(groups)}
        curves = {place: curve for place, curve in drawn.items() if len(curve.rounds)}
        marked = scale * target if target is not None and quantity == "accuracy" else None
        labels = [group.label for group in groups]
        pictures += [_draw(quantity, unit, axis, curves, labels, marked) for axis in _AXES if curves]
    return pictures


def _draw(
    quantity: str, unit: str, axis: str, curves: Mapping[int, Curve], labels: Sequence[str], target: float | None
) -> CurvePicture:
    """Draw a figure; `curves` are by the place of their group, which determines their look."""
    end = max(float(getattr(curve, axis)[-1]) for curve in curves.values())
    frame = Frame(52, 34, WIDTH - 24, 244, (0.0, end or 1.0), _range([*curves.values()], target))
    against, x_label = _AXES[axis]
    caption = f"{quantity.capitalize()} against {against}"
    ends = (f"{labels[place]} from {curve.mean[0]:.4g} to {curve.mean[-1]:.4g}" for place, curve in curves.items())
    line = "" if target is None else f" A line marks the target of {target:.4g} %."
    summary = f"{caption}, {unit}: {'; '.join(ends)}.{line}"
    drawn = [_draw_curve(frame, curve.thinned(_POINTS), axis, place, labels[place]) for place, curve in curves.items()]
    return CurvePicture(caption, summary, frame, x_label, unit, drawn, target)


def _range(curves: Sequence[Curve], target: float | None) -> tuple[float, float]:
    """Return the values at the lower and the upper edge: all that is drawn, and a margin."""
    also = [] if target is None else [target]
    low = min([float(curve.low.min()) for curve in curves] + also)
    high = max([float(curve.high.max()) for curve in curves] + also)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _draw_curve(frame: Frame, curve: Curve, axis: str, place: int, label: str) -> DrawnCurve:
    xs = [frame.at_x(value) for value in getattr(curve, axis).tolist()]
    low, mean, high = ([frame.at_y(value) for value in one.tolist()] for one in (curve.low, curve.mean, curve.high))
    outline = [*zip(xs, high, strict=True), *reversed([*zip(xs, low, strict=True)])]
    every = max(1, math.ceil(len(xs) / _MARKS))
    points = [*zip(xs, mean, strict=True)]
    # Curves that coincide show each other's marks, because each begins at its own place.
    marks = points[place % every :: every]
    return DrawnCurve(label, Look.of(place), path_through(points), path_through(outline) if low != high else "", marks)
