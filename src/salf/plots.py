"""Pictures of runs."""

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from salf.errors import RunFolderError
from salf.records import RoundRecord

# Colours that people with every kind of colour vision tell apart (Okabe and Ito, 2008), dark enough for white paper.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"

Floats = npt.NDArray[np.float64]


def plot_accuracy(
    curves: Mapping[str, Sequence[Sequence[RoundRecord]]], title: str, target: float | None = None
) -> Figure:
    """Draw test accuracy against virtual time: per method the mean over its runs, and a band from worst to best.

    `curves` maps a method to the records of its runs, one sequence per seed.
    """
    with mpl.rc_context({"font.size": 11, "svg.hashsalt": "salf", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for (method, runs), colour, marker in zip(curves.items(), _COLOURS * 9, _MARKERS * 9, strict=False):
            seconds, accuracy = _evaluated(runs)
            mean = 100 * accuracy.mean(axis=0)
            every = max(1, len(mean) // 8)
            axes.plot(seconds, mean, color=colour, marker=marker, markevery=every, markersize=5, label=method)
            axes.fill_between(
                seconds, 100 * accuracy.min(axis=0), 100 * accuracy.max(axis=0), color=colour, alpha=0.15, linewidth=0
            )
        if target is not None:
            axes.axhline(
                100 * target, color="#555555", linewidth=1, linestyle=":", label=f"target {100 * target:.1f} %"
            )
        axes.set(xlabel="virtual time (s)", ylabel="test accuracy (%)", title=title)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the suffix of `path`, .png or .svg, says how. Raises `RunFolderError`."""
    try:
        with mpl.rc_context({"svg.hashsalt": "salf", "svg.fonttype": "none"}):
            # No date: the same runs give the same file.
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror}") from error


def svg_of(figure: Figure) -> str:
    """Return a figure as an SVG element, to be put into a page."""
    text = StringIO()
    with mpl.rc_context({"svg.hashsalt": "salf", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _evaluated(runs: Sequence[Sequence[RoundRecord]]) -> tuple[Floats, Floats]:
    """Return the mean times, shape (points,), and accuracies, shape (runs, points), of the rounds that were tested."""
    tested = [[record for record in run if record.accuracy is not None] for run in runs]
    seconds = np.array([[record.time_s for record in run] for run in tested])
    return seconds.mean(axis=0), np.array([[record.accuracy for record in run] for run in tested], dtype=np.float64)
