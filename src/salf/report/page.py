"""The page: all that the template shows, computed from runs."""

import math
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from salf.records import target_accuracy
from salf.report.figures import LEVELS, WIDTH, Frame, draw_curves, draw_participation, ticks
from salf.report.headline import headline
from salf.report.looks import COLOURS, Look
from salf.report.numbers import Outcome, results_table
from salf.report.reported import ReportedRun, RunGroup, differing_keys, group_runs, marked_lines


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
    return _template().render(_content(group_runs(runs)))


def _content(groups: Sequence[RunGroup]) -> dict[str, object]:
    """Return what the template shows."""
    chosen = next((run.target for group in groups for run in group.runs if run.target is not None), None)
    is_timed = chosen is not None or len(groups) > 1  # a single group is not timed to its own accuracy
    target = target_accuracy(chosen, [group.curves for group in groups]) if is_timed else math.nan
    names = list(dict.fromkeys(str(run.flat["name"]) for group in groups for run in group.runs))
    outcomes = [Outcome.of(group, target) for group in groups]
    return {
        "version": version("salf"),
        "names": names,
        "headline": headline(outcomes, names, target),
        "derived_target": chosen is None and math.isfinite(target),
        "explanations": {run.method: run.explanation for group in groups for run in group.runs if run.explanation},
        "results": results_table(outcomes, target),
        "curves": draw_curves(groups, target if math.isfinite(target) else None),
        "participation": [draw_participation(group) for group in groups],
        "switched_off": any(group.runs[0].flat.get("devices.availability") == "on-off" for group in groups),
        "reproducible_seeds": sorted({seed for group in groups for seed in group.seeds if not group.unreproducible}),
        "groups": groups,
        "differing": set(differing_keys([group.runs[0].flat for group in groups])) - {"seed"},
    }


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
    environment.globals |= {"colours": COLOURS, "levels": LEVELS, "width": WIDTH}
    environment.globals |= {
        "look_of": Look.of,
        "new_frame": Frame,
        "ticks": ticks,
        "marked_lines": marked_lines,
        "zip": zip,
    }
    return environment.get_template("page.html")
