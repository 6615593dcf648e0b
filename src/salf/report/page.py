"""The page: all that the template shows, computed from runs."""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from salf.records import target_accuracy
from salf.report.frame import WIDTH, ticks
from salf.report.gantt import ROW, bars_of, draw_round
from salf.report.headline import headline
from salf.report.heatmap import LEVELS, draw_depths, draw_participation
from salf.report.lines import draw_curves
from salf.report.looks import COLOURS
from salf.report.numbers import Outcome
from salf.report.reported import Group, ReportedRun, group_runs
from salf.report.tables import participation_tables, results_table, settings_blocks


def render_report(runs: Sequence[ReportedRun]) -> str:
    r"""Return an HTML page about runs; the same runs give the same bytes.

    Runs that differ only in their seed are averaged; all others are compared.

    Args:
        runs: The runs, at least one, in the order in which the page shows them.

    Raises:
        RunFolderError: There are no runs, or two have the same settings and the same seed.

    >>> settings = 'name = "digits"\nseed = 0\nrounds = 1\n[method]\nname = "salf"'
    >>> from salf.records import RoundRecord
    >>> record = RoundRecord(1, 2.0, 2.0, 1, (1,), 1.0, accuracy=0.9, loss=0.5)
    >>> "salf on digits (seed 0) achieved 90.0" in render_report([ReportedRun(settings, (record,))])
    True
    """
    groups = group_runs(runs)
    reproducible = [group for group in groups if not any(run.unreproducible for run in group.runs)]
    chosen = next((run.target for group in groups for run in group.runs if run.target is not None), None)
    target = _target(groups, chosen)
    outcomes = [Outcome.of(group, target) for group in groups]
    rounds = [picture for group in groups if (picture := draw_round(group))]
    return _template().render(
        title=_title(groups),
        headline=headline(outcomes, list(dict.fromkeys(run.name for run in runs)), target),
        derived_target=chosen is None and math.isfinite(target),
        explanations={run.method: run.explanation for group in groups for run in group.runs if run.explanation},
        results=results_table(outcomes, target),
        unfinished=[group.label for group in groups if not group.is_finished],
        curves=draw_curves(groups, target if math.isfinite(target) else None),
        has_bands=any(len(group.runs) > 1 for group in groups),
        participation=[draw_participation(group) for group in groups],
        participation_tables=participation_tables(groups),
        depths=[bars for place, group in enumerate(groups) if (bars := draw_depths(group, place))],
        rounds=rounds,
        bars=bars_of(rounds),
        switched_off=any(group.runs[0].flat.get("devices.availability") == "on-off" for group in groups),
        reasons=list(_reasons(groups)),
        reproducible=reproducible,
        seeds=sorted({seed for group in reproducible for seed in group.seeds}),
        groups=groups,
        settings=settings_blocks(groups),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("salf.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["at"] = lambda value: f"{round(value, 1):g}"
    environment.globals |= {"colours": COLOURS, "levels": LEVELS, "row": ROW, "ticks": ticks, "width": WIDTH}
    environment.globals["version"] = version("salf")
    return environment.get_template("page.html")


def _target(groups: Sequence[Group], chosen: float | None) -> float:
    """Return the accuracy to which runs are timed; NaN for a single group whose experiment sets none."""
    if chosen is None and len(groups) == 1:
        return math.nan
    return target_accuracy(chosen, ([run.records for run in group.runs] for group in groups))


def _title(groups: Sequence[Group]) -> str:
    names = " and ".join(dict.fromkeys(run.name for group in groups for run in group.runs))
    if len(groups) > 1:
        is_method = len({group.runs[0].method for group in groups}) == len(groups)
        return f"{names}: {len(groups)} {'methods' if is_method else 'variants'}"
    seeds = groups[0].seeds
    return f"{names} · {groups[0].label} · " + (f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds")


def _reasons(groups: Sequence[Group]) -> Iterator[str]:
    """Yield why runs cannot be reproduced, each reason of a group once."""
    for group in groups:
        for reason in dict.fromkeys(reason for run in group.runs for reason in run.unreproducible):
            yield reason if len(groups) == 1 else f"{group.label}: {reason}"
