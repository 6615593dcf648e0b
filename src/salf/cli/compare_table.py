"""A comparison as a table with footnotes, and as one JSON object."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict

from rich.table import Table

from salf.cli.console import table_of
from salf.cli.quantities import counted, megabytes, percent, seconds
from salf.runs import Comparison, Summary, Tuning


def comparison_table(comparison: Comparison) -> Table:
    """Return a table with one row per method; it fits 80 columns."""
    experiment, count = comparison.experiment, len(next(iter(comparison.runs.values())))
    extent = (counted(experiment.rounds, "round"), counted(experiment.data.clients, "client"), counted(count, "seed"))
    columns: dict[str, Callable[[Summary], str]] = {
        "method": lambda one: one.method,
        "final\naccuracy %": lambda one: _accuracy(one.accuracy, one.deviation),
        f"accuracy %\nat {seconds(comparison.equal_time_s)}": lambda one: _accuracy(
            one.equal_time_accuracy, one.equal_time_deviation
        ),
        f"time to\n{percent(comparison.target)}": _time_to_target,
        "\nspeed-up": lambda one: "–" if (ratio := comparison.speed_up(one)) is None else f"{ratio:.1f}×",
        "work\nkept": lambda one: "–" if math.isnan(one.work_kept) else f"{100 * one.work_kept:.0f} %",
        "MB down\n/ up": lambda one: f"{megabytes(one.bytes_down)}/{megabytes(one.bytes_up)}",
        "\np": lambda one: "–" if one.p_value is None else _p_value(one.p_value),
    }
    return table_of(f"{experiment.name}: {', '.join(extent)}", columns, comparison.summaries)


def footnotes(comparison: Comparison) -> Iterator[str]:
    """Yield a line for each column that needs one, and for each method with starving layers."""
    equal, target = seconds(comparison.equal_time_s), percent(comparison.target)
    chosen = "" if comparison.experiment.evaluate.target else " (95 % of the best method's; set evaluate.target)"
    summaries = comparison.summaries
    tested = [summary for summary in summaries if math.isfinite(summary.equal_time_accuracy)]
    untested = [summary.method for summary in summaries if summary not in tested]
    yield "accuracy: on the test data, mean ± standard deviation over seeds"
    yield f"at {equal}: at the virtual time at which the shortest run ended" + (
        f"; not tested by then: {', '.join(untested)}" if untested else ""
    )
    yield f"time to {target}: mean virtual time until the test accuracy first reaches the target{chosen}"
    if any(comparison.speed_up(summary) is not None for summary in summaries):
        yield f"speed-up: time to {target} of fedavg, which waits for every client, divided by the method's"
    yield "work kept: share of the clients' finished work that entered the model"
    yield "MB down / up: megabytes that the server sent and received in a run"
    if any(summary.p_value is not None for summary in summaries):
        best = max(tested, key=lambda summary: summary.equal_time_accuracy).method
        yield f"p: p-value of a paired t-test against the best other method at {equal}; best of all: {best}"
    for summary in summaries:
        if summary.starving:
            layers = ", ".join(summary.starving)
            yield f"{summary.method}: some clients never send {layers}; `salf run` with this method names them"


def _accuracy(mean: float, deviation: float) -> str:
    """Write an accuracy in per cent, without the sign.

    >>> _accuracy(0.915, 0.012)
    '91.5 ±1.2'
    """
    return percent(mean, deviation).replace(" %", "").replace("± ", "±")


def _time_to_target(summary: Summary) -> str:
    """Write the mean time; if only some seeds reach the target, how many."""
    reached = sum(map(math.isfinite, summary.times_to_target))
    if 0 < reached < len(summary.times_to_target):
        return f"by {reached} of {len(summary.times_to_target)}"
    return seconds(summary.time_to_target)


def _p_value(value: float) -> str:
    """Write a p-value with three digits.

    >>> _p_value(0.04), _p_value(0.001), _p_value(0.00099)
    ('0.040', '0.001', '<.001')
    """
    return f"{value:.3f}" if value >= 0.001 else "<.001"


def comparison_json(comparison: Comparison, tuning: Tuning | None) -> dict[str, object]:
    """Return the comparison under the keys of `comparison.json`, which docs/records.md describes."""
    return {
        "experiment": comparison.experiment.name,
        "seeds": [run.experiment.seed for run in next(iter(comparison.runs.values()))],
        "target": comparison.target,
        "equal_time_s": comparison.equal_time_s,
        "methods": [_summary_json(comparison, summary) for summary in comparison.summaries],
        "tuning": tuning
        and [
            {"method": method, "lr": rate, "held_out_accuracy": accuracy}
            for method, tried in tuning.accuracies.items()
            for rate, accuracy in tried.items()
        ],
    }


def _summary_json(comparison: Comparison, summary: Summary) -> dict[str, object]:
    """Return a method's row; docs/records.md describes the keys."""
    known = asdict(summary)
    del known["times_to_target"]
    return {
        **known,
        "lr": comparison.runs[summary.method][0].experiment.client.lr,
        "accuracy": summary.accuracy,
        "deviation": summary.deviation,
        "equal_time_accuracy": summary.equal_time_accuracy,
        "time_to_target_s": summary.time_to_target,
        "speed_up": comparison.speed_up(summary),
    }
