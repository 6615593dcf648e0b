"""Pictures of runs."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from salf.errors import RunFolderError
from salf.records import RoundRecord, curve_of
from salf.values import Floats

# Colours that people with every kind of colour vision tell apart (Okabe and Ito, 2008), dark enough for white paper.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_LINES = ("-", "--", "-.", ":")
_MOST_NAMED = 12  # lines in a legend
_NOTHING = 1e-9  # what is smaller is a rounding error, and left out where an axis is logarithmic


def plot_accuracy(
    curves: Mapping[str, Sequence[Sequence[RoundRecord]]], title: str, target: float | None = None
) -> Figure:
    """Draw test accuracy against virtual time: per method the mean over its runs, and a band from worst to best.

    `curves` maps a method to the records of its runs, one sequence per seed.
    """
    with _style():
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        looks = cycle(
            (colour, marker, line) for line in _LINES for colour, marker in zip(_COLOURS, _MARKERS, strict=True)
        )
        for (method, runs), look in zip(curves.items(), looks, strict=False):
            _draw(axes, method, runs, *look)
        if target is not None:
            axes.axhline(
                100 * target, color="#555555", linewidth=1, linestyle=":", label=f"target {100 * target:.1f} %"
            )
        axes.set(xlabel="virtual time (s)", ylabel="test accuracy (%)")
        axes.set_title(_short(title, 80), parse_math=False)  # dollar signs are dollar signs
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            legend = axes.legend(frameon=False, loc="lower right", ncols=1 + len(curves) // 8)
            for text in legend.get_texts():
                text.set_parse_math(False)
    return figure


def plot_growth(clients: Sequence[int], seconds: Sequence[float], title: str) -> Figure:
    """Draw the time of a round against its number of clients, both logarithmic, beside a line of slope 1."""
    with _style():
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        milliseconds = 1000 * np.asarray(seconds, dtype=np.float64)
        axes.loglog(clients, milliseconds, color=_COLOURS[0], marker=_MARKERS[0], label="measured")
        linear = milliseconds[-1] * np.asarray(clients, dtype=np.float64) / clients[-1]
        axes.loglog(clients, linear, color="#555555", linestyle=":", label="proportional to the clients")
        axes.set(xlabel="clients in a round", ylabel="time of a round (ms)")
        axes.set_title(title)
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


class Forecast(Protocol):
    """What `plot_deadlines` draws of one deadline, as in `salf.planning.Outlook`."""

    @property
    def deadline_seconds(self) -> float: ...  # noqa: D102
    @property
    def mean_depth(self) -> float: ...  # noqa: D102
    @property
    def empty(self) -> Floats: ...  # noqa: D102
    @property
    def kept(self) -> float: ...  # noqa: D102
    @property
    def kept_by_dropping(self) -> float: ...  # noqa: D102
    @property
    def variance_factor(self) -> Floats: ...  # noqa: D102
    @property
    def round_seconds(self) -> float: ...  # noqa: D102
    @property
    def bound(self) -> float: ...  # noqa: D102
    @property
    def estimate(self) -> float: ...  # noqa: D102


def plot_deadlines(outlooks: Sequence[Forecast], layers: Sequence[str], best_seconds: float, title: str) -> Figure:
    """Draw what becomes of depth, empty layers, work, variance, bound and round time as the deadline grows.

    `layers` are the layers' names, input to output; a line marks the deadline `best_seconds`. What is infinite is left
    out.
    """
    curves: dict[str, dict[str, Floats]] = {
        "layers conveyed per client": {"": np.array([each.mean_depth for each in outlooks])},
        "chance that nobody conveys a layer": dict(
            zip(layers, np.array([each.empty for each in outlooks]).T, strict=True)
        ),
        "finished work kept (%)": {
            "layer-wise": 100 * np.array([each.kept for each in outlooks]),
            "dropping": 100 * np.array([each.kept_by_dropping for each in outlooks]),
        },
        "variance factor, worst layer": {"": np.array([each.variance_factor.max() for each in outlooks])},
        "error after the budget": {
            "bound": np.array([each.bound for each in outlooks]),
            "estimate": np.array([each.estimate for each in outlooks]),
        },
        "duration of a round (s)": {"": np.array([each.round_seconds for each in outlooks])},
    }
    seconds = np.array([each.deadline_seconds for each in outlooks])
    with _style():
        figure = Figure(figsize=(11, 6.2), layout="constrained")
        for axes, (heading, lines) in zip(figure.subplots(2, 3, sharex=True).flat, curves.items(), strict=True):
            _draw_over_deadlines(axes, seconds, lines, heading, best_seconds)
        figure.supxlabel("deadline (s)")
        figure.suptitle(_short(title, 100), parse_math=False)
    return figure


def _draw_over_deadlines(
    axes: Axes, seconds: Floats, lines: Mapping[str, Floats], heading: str, best_seconds: float
) -> None:
    looks = cycle((colour, line) for line in _LINES for colour in _COLOURS)
    logarithmic = heading.startswith(("error", "variance"))
    for (name, values), (colour, line) in zip(lines.items(), looks, strict=False):
        shown = np.isfinite(values) & (values > (_NOTHING if logarithmic else -1))
        known = np.where(shown, values, np.nan)
        marker = "." if len(seconds) < 15 else None
        axes.plot(seconds, known, color=colour, linestyle=line, marker=marker, label=_short(name, 24))
    axes.axvline(best_seconds, color="#555555", linewidth=1, linestyle=":")
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(heading, fontsize="medium")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if 1 < len(lines) <= _MOST_NAMED:
        for text in axes.legend(frameon=False, fontsize="small").get_texts():
            text.set_parse_math(False)


def _draw(axes: Axes, method: str, runs: Sequence[Sequence[RoundRecord]], colour: str, marker: str, line: str) -> None:
    curve = curve_of(runs, "accuracy")
    axes.plot(
        curve.seconds,
        100 * curve.mean,
        color=colour,
        linestyle=line,
        marker=marker,
        markevery=max(1, len(curve.seconds) // 8),
        markersize=5,
        label=_short(method, 60),
    )
    axes.fill_between(curve.seconds, 100 * curve.low, 100 * curve.high, color=colour, alpha=0.15, linewidth=0)


def _short(name: str, length: int) -> str:
    """Fit a name into one line; one that begins with an underscore gets a blank first, or matplotlib would hide it."""
    line = " ".join(name.split())
    line = line if len(line) <= length else f"{line[: length - 1]}…"
    return f" {line}" if line.startswith("_") else line


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the suffix of `path`, .png or .svg, says how. Raises `RunFolderError`."""
    image = _render(figure, path.suffix.removeprefix("."))
    try:
        path.write_bytes(image)
    except OSError as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write {path}: {error.strerror}; mend that and go on") from error


def svg_of(figure: Figure) -> str:
    """Return a figure as an SVG element, to be put into a page."""
    text = _render(figure, "svg").decode()
    return text[text.index("<svg") :]


def _render(figure: Figure, form: str) -> bytes:
    """Return a picture's file; the same figure gives the same bytes."""
    file = BytesIO()
    with _style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box is drawn, which is enough
        figure.savefig(file, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context({"font.size": 11, "svg.hashsalt": "salf", "svg.fonttype": "none"}):
        yield
