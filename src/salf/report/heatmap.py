"""Which layers arrived: clients per layer over the rounds, and the depth that clients reached."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from salf.records import RoundRecord
from salf.report.frame import WIDTH, Frame, Picture
from salf.report.looks import Look
from salf.report.reported import RunGroup
from salf.values import Floats, Ints

LEVELS = 8  # of colour, above none
_COLUMNS = 120  # of a heat map; with more rounds, a column is the mean of several


@dataclass(frozen=True)
class HeatMap(Picture):
    """A figure with a row for each layer and a column for each round, or for several.

    Attributes:
        x_label: The name of the horizontal axis.
        rows: The layers' names, from top to bottom.
        row: The height of a row.
        cells: All cells of a colour as one SVG path, by the colour's level from 1.
        clients: The number of clients that the last level stands for.
    """

    x_label: str
    rows: Sequence[str]
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
    means = "; ".join(f"{name} {mean:.1f}" for name, mean in zip(names, counts.mean(axis=0), strict=True))
    summary = f"Clients of {clients} that sent each layer, mean over rounds: {means}"
    x_label = "round" if width == 1 else f"round (a column is the mean of {width})"
    return HeatMap(group.label, summary, frame, x_label, names[::-1], row, cells, clients)


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


@dataclass(frozen=True)
class DepthPicture(Picture):
    """A figure with a bar for each depth.

    Attributes:
        look: The group's look.
        shares: The share of clients of each depth, in per cent.
    """

    look: Look
    shares: Sequence[float]


def draw_depths(group: RunGroup, place: int) -> DepthPicture | None:
    """Draw the share of clients that sent 0, 1, … and all layers.

    Args:
        group: The runs to draw.
        place: The place of the group on the page, which determines its colour.

    Returns:
        The figure; None if the records do not contain depths.
    """
    shares = [100 * share for share in depth_shares(group.records).tolist()]
    if not shares:
        return None
    frame = Frame(52, 34, WIDTH - 12, 204, (0.0, float(len(shares))), (0.0, max(10.0, 1.05 * max(shares))))
    words = "; ".join(f"{depth}: {share:.1f} %" for depth, share in enumerate(shares))
    summary = f"Share of clients by the number of layers sent: {words}"
    return DepthPicture(group.label, summary, frame, Look.of(place), shares)


def depth_shares(records: Sequence[RoundRecord]) -> Floats:
    """Return the share of clients that sent 0, 1, … and all layers, over all rounds.

    >>> record = RoundRecord(1, 2.0, 2.0, 4, (1, 3), 1.0, depths=(1, 2, 1))
    >>> depth_shares([record, record]).tolist()
    [0.25, 0.5, 0.25]

    Returns:
        Shares of shape (layers + 1,); empty if records do not contain depths.
    """
    known = [record.depths for record in records if record.depths]
    if not known or len({len(depths) for depths in known}) > 1:
        return np.empty(0)
    total = np.sum(known, axis=0, dtype=np.float64)
    return np.asarray(total / max(1.0, float(total.sum())), dtype=np.float64)
