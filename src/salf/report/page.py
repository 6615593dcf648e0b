"""The page itself: sections with headings, in the order in which one asks."""

from collections.abc import Iterator, Sequence
from html import escape
from importlib.metadata import version

from salf.records import curve_of
from salf.report import gantt, lines
from salf.report.heatmap import depth_distribution, participation
from salf.report.numbers import figures_of
from salf.report.reported import Group, ReportedRun, group_runs
from salf.report.style import STYLE
from salf.report.tables import figures_table, participation_table, settings_blocks


def render_report(runs: Sequence[ReportedRun]) -> str:
    """Return the page about runs of one experiment, which may differ in method, learning rate and seed.

    Raises `RunFolderError` if they differ in more, or one is given twice. The same runs give the same bytes.
    """
    groups = group_runs(runs)
    title = escape(_title(groups))
    body = "".join(
        part for section in (_results, _curves, _participation, _rounds, _settings) for part in section(groups)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # No icon: a browser would look for one otherwise.
        f'<link rel="icon" href="data:,">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n<h1>{title}</h1>\n{body}</main>\n</body>\n</html>\n"
    )


def _title(groups: Sequence[Group]) -> str:
    first = groups[0].runs[0]
    if len(groups) > 1:
        return f"{first.name}: {len(groups)} methods"
    seeds = f"seed {first.seed}" if len(groups[0].runs) == 1 else f"{len(groups[0].runs)} seeds"
    return f"{first.name} · {groups[0].label} · {seeds}"


def _results(groups: Sequence[Group]) -> Iterator[str]:
    yield "<h2>Figures</h2>\n"
    yield figures_table([figures_of(group) for group in groups])
    yield (
        '<p class="note">Means over seeds, accuracy with its standard deviation. Time is that of the virtual clock; '
        "work kept is the share of the clients' finished work that entered the model; sent and received are what the "
        "server did in a run.</p>\n"
    )
    unfinished = [group.label for group in groups if not group.is_finished]
    if unfinished:
        yield f"<p><strong>Not finished:</strong> {escape(', '.join(unfinished))}. Figures are those so far.</p>\n"


def _curves(groups: Sequence[Group]) -> Iterator[str]:
    yield f"<h2>Accuracy and loss</h2>\n{lines.legend([group.label for group in groups])}"
    drawn = ""
    for figure, unit in (("accuracy", "on the test data, 0 to 1"), ("loss", "cross-entropy on the test data")):
        curves = {group.label: curve_of(group.curves, figure) for group in groups}  # type: ignore[arg-type]
        drawn += lines.draw_curves(curves, f"{figure.capitalize()} against virtual time", unit, "seconds")
        drawn += lines.draw_curves(curves, f"{figure.capitalize()} against rounds", unit, "rounds")
    if not drawn:
        yield "<p>No round was tested yet.</p>\n"
        return
    yield f'<div class="figures">{drawn}</div>\n'
    if any(len(group.runs) > 1 for group in groups):
        yield '<p class="note">Lines are means over seeds, bands reach from the worst seed to the best.</p>\n'


def _participation(groups: Sequence[Group]) -> Iterator[str]:
    yield "<h2>Clients that conveyed each layer</h2>\n"
    yield '<p class="note">Layers from the output, on top, to the input; the mean over seeds.</p>\n'
    yield f'<div class="figures">{"".join(map(participation, groups))}</div>\n'
    yield "<h3>Share of the clients asked, in per cent</h3>\n" + participation_table(groups)
    depths = "".join(depth_distribution(group, place) for place, group in enumerate(groups))
    if depths:
        yield f'<h2>How deep clients got</h2>\n<div class="figures">{depths}</div>\n'


def _rounds(groups: Sequence[Group]) -> Iterator[str]:
    drawn = "".join(map(gantt.draw_timeline, groups))
    yield "<h2>A typical round</h2>\n"
    if not drawn:
        yield "<p>No time-line was kept with these runs, or their methods have no rounds.</p>\n"
        return
    yield (
        '<p class="note">Of the first 20 rounds the one in which clients got about as deep as on average. Clients from '
        "the one that conveyed most to the one that conveyed least. A device that is switched off for a while takes "
        "longer for what it is doing.</p>\n"
    )
    yield f'{gantt.legend()}<div class="figures">{drawn}</div>\n'


def _settings(groups: Sequence[Group]) -> Iterator[str]:
    seeds = sorted({seed for group in groups for seed in group.seeds})
    each = "" if len(groups) == 1 else "each method's "
    again = "" if len(seeds) == 1 else " --set seed=N"
    numbers = "" if len(seeds) == 1 else f" for N = {', '.join(map(str, seeds))}"
    yield "<h2>Settings</h2>\n"
    yield (
        f"<p>To reproduce it with salf {escape(version('salf'))}: save {each}settings as "
        f"<code>experiment.toml</code> and run <code>salf run experiment.toml{again}</code>{numbers}.</p>\n"
    )
    if len(groups) > 1:
        yield '<p class="note">What differs between methods is <mark>marked</mark>.</p>\n'
    yield from settings_blocks(groups)
