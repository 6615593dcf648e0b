"""Figures over time or rounds: per method the mean over seeds as a line, and a band from worst to best."""

import math
from collections.abc import Mapping
from html import escape
from typing import Literal

from salf.records import Curve
from salf.report import svg

_POINTS = 200  # of a line: more cannot be told apart
_MARKERS = 6  # along a line
_HEIGHT = 290.0

Axis = Literal["seconds", "rounds"]


def draw_curves(curves: Mapping[str, Curve], caption: str, unit: str, axis: Axis) -> str:
    """Draw curves, by the label of their group, against virtual seconds or rounds; nothing if there are no points."""
    drawn = {place: curve.thinned(_POINTS) for place, curve in enumerate(curves.values()) if len(curve.rounds)}
    if not drawn:
        return ""
    low = min(float(curve.low.min()) for curve in drawn.values())
    high = max(float(curve.high.max()) for curve in drawn.values())
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    end = max(float(getattr(curve, axis)[-1]) for curve in drawn.values())
    frame = svg.Frame(52, 34, svg.WIDTH - 24, _HEIGHT - 46, (0.0, end or 1.0), (low - margin, high + margin))
    parts = [*frame.y_axis(unit), *frame.x_axis("virtual time (s)" if axis == "seconds" else "round")]
    for place, curve in drawn.items():
        parts += _draw(frame, curve, place, axis)
    return svg.figure(caption, _summary(curves, caption, unit), _HEIGHT, parts)


def _draw(frame: svg.Frame, curve: Curve, place: int, axis: Axis) -> list[str]:
    xs = [frame.at_x(float(value)) for value in getattr(curve, axis)]
    low, mean, high = ([frame.at_y(float(value)) for value in values] for values in (curve.low, curve.mean, curve.high))
    parts = []
    if low != high:
        outline = [*zip(xs, high, strict=True), *reversed([*zip(xs, low, strict=True)])]
        parts.append(svg.path(outline, f"band c{place % 7}", closed=True))
    parts.append(svg.path(zip(xs, mean, strict=True), f"curve c{place % 7} d{place % 4}"))
    # Methods that coincide show each other's markers if each begins at a place of its own.
    every = max(1, math.ceil(len(xs) / _MARKERS))
    parts += [marker(xs[at], mean[at], place) for at in range(place % every, len(xs), every)]
    return parts


def marker(x: float, y: float, place: int) -> str:
    """Return the mark of the group at this place of a page; seven shapes in seven colours."""
    shapes = (
        "M-4-4H4V4H-4Z",
        "M0-5.5L5 4H-5Z",
        "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0-4.5 0Z",
        "M0-6L5 0L0 6L-5 0Z",
        "M0 5.5L5-4H-5Z",
        "M-5-1.7H-1.7V-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5Z",
        "M-5-5L0-1.8L5-5L1.8 0L5 5L0 1.8L-5 5L-1.8 0Z",
    )
    move = f"translate({svg.number(x)} {svg.number(y)})"
    return f'<path d="{shapes[place % 7]}" transform="{move}" class="mark c{place % 7}"/>'


def legend(labels: list[str]) -> str:
    """Return the list of groups, each with its line and its mark."""
    entries = "".join(
        f'<li><svg viewBox="0 0 48 16" width="48" height="16" aria-hidden="true">'
        f"{svg.path([(1, 8), (47, 8)], f'curve c{place % 7} d{place % 4}')}{marker(24, 8, place)}</svg>"
        f"{escape(label)}</li>"
        for place, label in enumerate(labels)
    )
    return f'<ul class="legend">{entries}</ul>\n'


def _summary(curves: Mapping[str, Curve], caption: str, unit: str) -> str:
    """Say in words where each curve begins and ends."""
    ends = "; ".join(
        f"{label} from {curve.mean[0]:.4g} to {curve.mean[-1]:.4g}" if len(curve.rounds) else f"{label} was not tested"
        for label, curve in curves.items()
    )
    return f"{caption}, {unit}: {ends}."
