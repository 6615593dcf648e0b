"""Tables of a report: figures, participation per layer, settings."""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from html import escape

import numpy as np

from salf.report.numbers import Figures
from salf.report.reported import Group


def table(name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column names the rows; it scrolls by itself, by keyboard, too, if it is too wide."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(value)}</td>" for value in others)}</tr>\n'
        for first, *others in rows
    )
    return (
        f'<div class="wide" role="region" aria-label="{escape(name)}" tabindex="0"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>\n"
    )


def figures_table(figures: Sequence[Figures]) -> str:
    """Return the table of figures."""
    names = "method,test accuracy,test loss,virtual time,work kept,sent,received,refused,rounds,seeds"
    rows = [
        (
            one.method,
            _percent(one.accuracy) + (f" ± {100 * one.deviation:.2f}" if math.isfinite(one.deviation) else ""),
            f"{one.loss:.4g}" if math.isfinite(one.loss) else "–",
            f"{one.time_s:.6g} s",
            _percent(one.work_kept),
            _megabytes(one.bytes_down),
            _megabytes(one.bytes_up),
            str(one.rejected),
            str(one.rounds) if one.rounds >= one.planned else f"{one.rounds} of {one.planned}",
            ", ".join(map(str, one.seeds)),
        )
        for one in figures
    ]
    return table("Figures", names.split(","), rows)


def participation_table(groups: Sequence[Group]) -> str:
    """Return the share of the clients asked that conveyed each layer, in per cent, per method."""
    names = groups[0].runs[0].layers
    shares = [_shares(group) for group in groups]
    rows = [(name, *(f"{100 * share[place]:.2f}" for share in shares)) for place, name in enumerate(names)]
    return table("Share of the clients asked that conveyed each layer", ("layer", *(g.label for g in groups)), rows)


def _shares(group: Group) -> list[float]:
    records = [record for run in group.runs for record in run.records]
    asked = max(1, sum(record.clients for record in records))
    total: list[float] = np.sum([record.contributors for record in records], axis=0).tolist()
    return [count / asked for count in total]


def settings_blocks(groups: Sequence[Group]) -> Iterator[str]:
    """Yield the complete settings of each group, the first unfolded, what differs between groups marked."""
    flats = [group.runs[0].flat for group in groups]
    keys = set().union(*flats) - {"seed"}
    differing = {key for key in keys if any(flat.get(key) != flats[0].get(key) for flat in flats)}
    for place, group in enumerate(groups):
        seeds = f"seed{'s' if len(group.seeds) > 1 else ''} {', '.join(map(str, group.seeds))}"
        name = f"{group.label}, {seeds}"
        yield (
            f"<details{'' if place else ' open'}><summary>{escape(name)}</summary>"
            f'<pre tabindex="0" role="region" aria-label="Settings of {escape(name)}">'
            f"{marked(group.runs[0].settings, differing)}</pre></details>\n"
        )


def marked(settings: str, keys: Collection[str]) -> str:
    r"""Return TOML as HTML in which the lines of these keys, by their dotted names, are marked.

    >>> marked('seed = 1\n[method]\nname = "salf"\n', {"method.name"})
    'seed = 1\n[method]\n<mark>name = &quot;salf&quot;</mark>'
    """
    section, key, lines = "", "", []
    for line in settings.splitlines():
        if heading := re.fullmatch(r"\[([\w.-]+)\]", line):
            section, key = f"{heading[1]}.", ""
        elif entry := re.match(r"([\w-]+) = ", line):
            key = section + entry[1]
        lines.append(f"<mark>{escape(line)}</mark>" if key in keys and line else escape(line))
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if math.isfinite(share) else "–"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.4g} MB"
