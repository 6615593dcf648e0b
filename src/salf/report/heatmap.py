"""Who conveyed what: clients per layer over the rounds, and how deep clients got."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from salf.records import RoundRecord
from salf.report import svg
from salf.report.reported import Group
from salf.values import Floats

_COLUMNS = 120  # of a heat map: with more rounds, a column is the mean of several
_LEVELS = 8  # of colour, above none
_LEFT = 104.0  # room for the layers' names


def participation(group: Group) -> str:
    """Draw how many clients conveyed each layer (rows, output on top) in each round, the mean over seeds."""
    rounds = min(len(run.records) for run in group.runs)
    counts = np.mean([[record.contributors for record in run.records[:rounds]] for run in group.runs], axis=0)
    asked = max(1, *(record.clients for run in group.runs for record in run.records))
    width = -(-rounds // _COLUMNS)
    columns = np.stack([counts[begin : begin + width].mean(axis=0) for begin in range(0, rounds, width)])
    levels = np.ceil(_LEVELS * np.clip(columns / asked, 0.0, 1.0) - 1e-9).astype(np.int64).T[::-1]
    names = group.runs[0].layers
    row = max(9.0, min(26.0, 260 / len(names)))
    frame = svg.Frame(_LEFT, 10, svg.WIDTH - 24, 10 + row * len(names), (0.0, float(rounds)), (0.0, float(len(names))))
    cells = [_cells(levels, level, width, rounds, frame, row) for level in range(1, _LEVELS + 1)]
    labels = [
        svg.text(_LEFT - 8, 10 + row * (place + 0.5) + 5, svg.shortened(name, 12), "end")
        for place, name in enumerate(reversed(names))
        if row >= 14 or place % 2 == 0
    ]
    back = svg.rectangle(_LEFT, 10, frame.right - _LEFT, row * len(names), "none")
    summary = f"Clients of {asked} that conveyed each layer, mean over rounds: " + "; ".join(
        f"{name} {mean:.1f}" for name, mean in zip(names, counts.mean(axis=0), strict=True)
    )
    each = "" if width == 1 else f" (a column: the mean of {width})"
    parts = [back, *cells, *labels, *frame.x_axis(f"round{each}"), *_key(frame, asked)]
    return svg.figure(group.label, summary, frame.bottom + 84, parts)


def _cells(levels: npt.NDArray[np.int64], level: int, width: int, rounds: int, frame: svg.Frame, row: float) -> str:
    """Return all cells of one colour as a single path; neighbours in a row are one rectangle."""
    steps = []
    for place, line in enumerate(levels == level):
        edges = np.flatnonzero(np.diff(line.astype(np.int8), prepend=0, append=0)) * width
        for begin, end in edges.reshape(-1, 2).tolist():
            left, right = frame.at_x(begin), frame.at_x(min(end, rounds))
            top, height = svg.number(frame.top + row * place), svg.number(row)
            across = svg.number(right - left)
            steps.append(f"M{left:.2f} {top}h{across}v{height}h-{across}Z")
    return f'<path d="{"".join(steps)}" class="h{level}"/>' if steps else ""


def _key(frame: svg.Frame, asked: int) -> list[str]:
    """Return what the colours mean."""
    top, side = frame.bottom + 54, 22.0
    boxes = [svg.rectangle(_LEFT + side * level, top, side, 14, f"h{level}" if level else "none") for level in range(9)]
    return [
        *boxes,
        svg.text(_LEFT - 8, top + 12, "none", "end"),
        svg.text(_LEFT + side * 9 + 8, top + 12, f"all {asked} clients", "start"),
    ]


def depth_distribution(group: Group, place: int) -> str:
    """Draw the share of clients that conveyed 0, 1, … and all layers; nothing where the records do not say.

    `place` is that of the group on the page, which gives it its colour.
    """
    shares = depth_shares([record for run in group.runs for record in run.records])
    if not len(shares):
        return ""
    frame = svg.Frame(
        52, 34, svg.WIDTH - 12, 204, (0.0, float(len(shares))), (0.0, max(10.0, 105 * float(shares.max())))
    )
    step = frame.at_x(1) - frame.at_x(0)
    bars = [
        svg.rectangle(
            frame.at_x(depth) + 0.12 * step,
            frame.at_y(100 * share),
            0.76 * step,
            frame.bottom - frame.at_y(100 * share),
            f"bar c{place % 7}",
            f"{depth} layers: {100 * share:.1f} %",
        )
        for depth, share in enumerate(shares.tolist())
    ]
    every = -(-len(shares) // 14)
    labels = [svg.text(frame.at_x(depth + 0.5), 222, str(depth)) for depth in range(0, len(shares), every)]
    base = svg.line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")
    name = svg.text((frame.left + frame.right) / 2, 241, "layers conveyed")
    summary = "Share of clients by the number of layers conveyed: " + "; ".join(
        f"{depth}: {100 * share:.1f} %" for depth, share in enumerate(shares.tolist())
    )
    return svg.figure(group.label, summary, 250, [*frame.y_axis("% of clients asked"), *bars, base, *labels, name])


def depth_shares(records: Sequence[RoundRecord]) -> Floats:
    """Return the share of clients of each depth over all rounds, shape (layers + 1,); empty where records lack it."""
    known = [record.depths for record in records if record.depths]
    if not known or len({len(depths) for depths in known}) > 1:
        return np.empty(0)
    total = np.sum(known, axis=0, dtype=np.float64)
    return np.asarray(total / max(1.0, float(total.sum())), dtype=np.float64)
