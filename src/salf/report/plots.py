"""Picture files of runs and plans, PNG or SVG; the first of them imports matplotlib."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from salf.errors import RunFolderError
from salf.records import RoundRecord, curve_of
from salf.report.looks import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from salf.planning import Outlook

_GREY = "#555555"
_MARKS = 8  # along a curve
_MOST_NAMED = 12  # lines in a legend of a deadline's figures
_ROUNDING = 1e-9  # smaller values are rounding errors, and left out where an axis is logarithmic


def plot_accuracy(
    curves: Mapping[str, Sequence[Sequence[RoundRecord]]], title: str, target: float | None = None
) -> "Figure":
    """Draw test accuracy against virtual time: the mean over runs, and a band from the worst to the best.

    Args:
        curves: For each method, the records of its runs, one sequence per seed.
        title: The title.
        target: An accuracy to mark by a line, 0 to 1; None for no line.

    >>> record = RoundRecord(1, 2.0, 2.0, 1, (1,), 1.0, accuracy=0.8)
    >>> figure = plot_accuracy({"salf": [[record]]}, "digits", target=0.75)
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['salf', 'target 75.0 %']
    """
    with _style():
        figure, axes = _new_figure()
        for place, (method, runs) in enumerate(curves.items()):
            _draw_method(axes, method, runs, place)
        if target is not None:
            axes.axhline(100 * target, color=_GREY, linewidth=1, linestyle=":", label=f"target {100 * target:.1f} %")
        axes.set(xlabel="virtual time (s)", ylabel="test accuracy (%)")
        axes.set_title(_one_line(title, 80), parse_math=False)  # dollar signs are dollar signs
        axes.set_xlim(left=0)
        if axes.get_legend_handles_labels()[0]:
            for text in axes.legend(frameon=False, loc="lower right", ncols=1 + len(curves) // 8).get_texts():
                text.set_parse_math(False)
    return figure


def _draw_method(axes: "Axes", method: str, runs: Sequence[Sequence[RoundRecord]], place: int) -> None:
    """Draw the curve of one method in the look of its place."""
    curve, look = curve_of(runs, "accuracy"), Look.of(place)
    every = max(1, len(curve.seconds) // _MARKS)
    axes.plot(
        curve.seconds,
        100 * curve.mean,
        color=look.colour,
        linestyle=look.line,
        marker=look.mark,
        markevery=(place % every, every),  # curves that coincide show each other's marks
        markersize=5,
        label=_one_line(method, 60),
    )
    axes.fill_between(curve.seconds, 100 * curve.low, 100 * curve.high, color=look.colour, alpha=0.15, linewidth=0)


def plot_growth(clients: Sequence[int], seconds: Sequence[float], title: str) -> "Figure":
    """Draw the time of a round against its number of clients, both logarithmic, beside a line of slope 1.

    Args:
        clients: Numbers of clients.
        seconds: The time of a round for each of them.
        title: The title.

    >>> plot_growth([10, 100], [0.01, 0.1], "MLP").axes[0].get_xscale()
    'log'
    """
    with _style():
        figure, axes = _new_figure()
        milliseconds, look = 1000 * np.asarray(seconds, dtype=np.float64), Look.of(0)
        axes.loglog(clients, milliseconds, color=look.colour, marker=look.mark, label="measured")
        linear = milliseconds[-1] * np.asarray(clients, dtype=np.float64) / clients[-1]
        axes.loglog(clients, linear, color=_GREY, linestyle=":", label="proportional to the number of clients")
        axes.set(xlabel="clients in a round", ylabel="time of a round (ms)")
        axes.set_title(title)
        axes.grid(alpha=0.25, which="both")
        axes.legend(frameon=False)
    return figure


def plot_deadlines(outlooks: Sequence["Outlook"], layers: Sequence[str], best_seconds: float, title: str) -> "Figure":
    """Draw how depth, empty layers, work, variance, error and round time depend on the deadline.

    Infinite values are left out.

    Args:
        outlooks: What to expect of each deadline.
        layers: The layers' names, input to output.
        best_seconds: The deadline that a line marks.
        title: The title.
    """
    empty = np.array([one.empty for one in outlooks]).T
    curves: dict[str, dict[str, list[float]]] = {
        "layers sent per client": {"": [one.mean_depth for one in outlooks]},
        "chance that no client sends a layer": dict(zip(layers, empty.tolist(), strict=True)),
        "finished work kept (%)": {
            "layer-wise": [100 * one.kept for one in outlooks],
            "dropping": [100 * one.kept_by_dropping for one in outlooks],
        },
        "variance factor, worst layer": {"": [float(one.variance_factor.max()) for one in outlooks]},
        "error after the budget": {
            "bound": [one.bound for one in outlooks],
            "estimate": [one.estimate for one in outlooks],
        },
        "duration of a round (s)": {"": [one.round_seconds for one in outlooks]},
    }
    seconds = [one.deadline_seconds for one in outlooks]
    with _style():
        figure, _ = _new_figure(11, 6.2, rows=2, columns=3)
        for axes, (heading, lines) in zip(figure.axes, curves.items(), strict=True):
            _draw_over_deadlines(axes, seconds, lines, heading)
            axes.axvline(best_seconds, color=_GREY, linewidth=1, linestyle=":")
        figure.supxlabel("deadline (s)")
        figure.suptitle(_one_line(title, 100), parse_math=False)
    return figure


def _draw_over_deadlines(
    axes: "Axes", seconds: Sequence[float], lines: Mapping[str, Sequence[float]], heading: str
) -> None:
    """Draw one of the figures of `plot_deadlines`, with a legend if it has several lines, but not very many."""
    logarithmic = heading.startswith(("error", "variance"))
    for place, (name, values) in enumerate(lines.items()):
        look, marker = Look.of(place), "." if len(seconds) < 15 else None
        lowest = _ROUNDING if logarithmic else -1.0
        known = [value if lowest < value < math.inf else math.nan for value in values]
        axes.plot(seconds, known, color=look.colour, linestyle=look.line, marker=marker, label=_one_line(name, 24))
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter("")
    axes.set_title(heading, fontsize="medium")
    if 1 < len(lines) <= _MOST_NAMED:
        for text in axes.legend(frameon=False, fontsize="small").get_texts():
            text.set_parse_math(False)


def _new_figure(width: float = 8, height: float = 4.5, *, rows: int = 1, columns: int = 1) -> "tuple[Figure, Axes]":
    """Return an empty figure with a pale grid, and the first of its axes.

    Args:
        width: The width in inches.
        height: The height in inches.
        rows: How many axes there are above each other.
        columns: How many axes there are side by side.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes 0.4 s, which runs without picture files do not need

    figure = Figure(figsize=(width, height), layout="constrained")
    for axes in figure.subplots(rows, columns, sharex=True, squeeze=False).flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, figure.axes[0]


def _one_line(name: str, length: int) -> str:
    """Fit a name into one line; a blank before an underscore keeps matplotlib from hiding the name."""
    line = " ".join(name.split())
    line = line if len(line) <= length else f"{line[: length - 1]}…"
    return f" {line}" if line.startswith("_") else line


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure to a file; the same figure gives the same bytes.

    Args:
        figure: The figure.
        path: The file; its suffix, .png or .svg, determines the format.

    Raises:
        RunFolderError: The file cannot be written.
    """
    form, image = path.suffix.removeprefix("."), BytesIO()
    with _style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box is drawn, which is enough
        figure.savefig(image, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    try:
        path.write_bytes(image.getvalue())
    except OSError as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise RunFolderError(
            f"cannot write {path}: {error.strerror}; choose a folder that exists and is writable"
        ) from error


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl  # noqa: PLC0415 - see _new_figure

    with mpl.rc_context({"font.size": 11, "svg.hashsalt": "salf", "svg.fonttype": "none"}):
        yield
