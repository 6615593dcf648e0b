"""The contents of a report's tables: results, participation in layers, settings."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from salf.report.numbers import Outcome
from salf.report.reported import RunGroup, differing_keys


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows; every row has as many cells as there are columns."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def results_table(outcomes: Sequence[Outcome], target: float) -> Table:
    """Return the table of results; columns that would say nothing are left out.

    Args:
        outcomes: The outcome of each group.
        target: The accuracy to which runs are timed, 0 to 1; NaN if there is none.
    """
    columns = {
        "method": [one.label for one in outcomes],
        "test accuracy": [_accuracy(one) for one in outcomes],
        "test loss": [_number(one.figures.loss, "") for one in outcomes],
        f"time to {100 * target:.4g} %": [_time_to_target(one) for one in outcomes] if math.isfinite(target) else [],
        "virtual time": [f"{one.figures.time_s:.6g} s" for one in outcomes],
        "work kept": [_percent(one.figures.work_kept) for one in outcomes],
        "sent": [_number(one.figures.bytes_down / 1e6, " MB") for one in outcomes],
        "received": [_number(one.figures.bytes_up / 1e6, " MB") for one in outcomes],
        "refused": [str(one.figures.rejected) for one in outcomes] if any(o.figures.rejected for o in outcomes) else [],
        "rounds": [_rounds(one) for one in outcomes],
        "seeds": [", ".join(map(str, one.figures.seeds)) for one in outcomes],
    }
    shown = {name: cells for name, cells in columns.items() if cells}
    return Table("Results", list(shown), list(zip(*shown.values(), strict=True)))


def participation_tables(groups: Sequence[RunGroup]) -> list[Table]:
    """Return the share of clients that sent each layer, in per cent: one table for all groups with the same layers."""
    together: dict[tuple[str, ...], list[RunGroup]] = {}
    for group in groups:
        together.setdefault(group.runs[0].layers, []).append(group)
    return [
        Table(
            "Share of clients that sent each layer",
            ["layer", *(group.label for group in same)],
            [*zip(names, *map(_layer_shares, same), strict=True)],
        )
        for names, same in together.items()
    ]


def _layer_shares(group: RunGroup) -> list[str]:
    """Return the share of clients that sent each layer, over all rounds and runs, input to output."""
    clients = max(1, sum(record.clients for record in group.records))
    total: list[int] = np.sum([record.contributors for record in group.records], axis=0).tolist()
    return [f"{100 * count / clients:.2f}" for count in total]


def settings_blocks(groups: Sequence[RunGroup]) -> dict[str, list[tuple[str, bool]]]:
    """Return the settings of each group by its label and seeds.

    Returns:
        The lines of each group's TOML, and whether to mark a line because the groups differ in it.
    """
    differing = {key for key in differing_keys([group.runs[0].flat for group in groups]) if key != "seed"}
    return {
        f"{group.label}, seed{'s' if len(group.seeds) > 1 else ''} {', '.join(map(str, group.seeds))}": marked_lines(
            group.runs[0].settings, differing
        )
        for group in groups
    }


def marked_lines(settings: str, keys: Collection[str]) -> list[tuple[str, bool]]:
    r"""Return the lines of a TOML document, and whether each belongs to one of the keys.

    Args:
        settings: The document.
        keys: Dotted names.

    >>> marked_lines('seed = 1\n[method]\nname = "salf"\n', {"method.name"})
    [('seed = 1', False), ('[method]', False), ('name = "salf"', True)]
    """
    section, key, lines = "", "", []
    for line in settings.splitlines():
        if heading := re.fullmatch(r"\[([\w.-]+)\]", line):
            section, key = f"{heading[1]}.", ""
        elif entry := re.match(r"([\w-]+) = ", line):
            key = section + entry[1]
        lines.append((line, bool(line) and key in keys))
    return lines


def _accuracy(one: Outcome) -> str:
    deviation = one.figures.deviation
    return _percent(one.figures.accuracy) + (f" ± {100 * deviation:.2f}" if math.isfinite(deviation) else "")


def _time_to_target(one: Outcome) -> str:
    """Return the mean time, or how many runs got there."""
    if math.isfinite(one.seconds):
        return f"{one.seconds:.4g} s"
    return f"{one.reached} of {len(one.times)} runs" if one.reached else "not reached"


def _rounds(one: Outcome) -> str:
    done, planned = one.figures.rounds, one.figures.planned
    return str(done) if done >= planned else f"{done} of {planned}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if math.isfinite(share) else "–"


def _number(value: float, unit: str) -> str:
    return f"{value:.4g}{unit}" if math.isfinite(value) else "–"
