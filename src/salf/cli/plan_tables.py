"""A plan in words: the table of deadlines, the advice below it, and the same as one JSON object."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from salf.cli.console import counted, finite, percent, seconds
from salf.planning import DeadlinePlan, Fleet, Outlook
from salf.values import Floats

_MOST_LAYERS, _MOST_ROWS = 4, 12
_UNEQUAL = 0.25  # imbalance from which on people are warned: a fifth of the clients have no part, the others equal ones


def tables(
    name: str, layers: Sequence[str], fleet: Fleet, own_deadline: float, plan: DeadlinePlan
) -> tuple[Table, Table]:
    """Draw up two tables with a row for each of a dozen deadlines, the best and the experiment's own among them.

    The first says what of the clients' work arrives, the second what it is worth and what it costs.
    """
    rows = _rows(plan, own_deadline)
    asked = counted(fleet.asked, "client") + ("" if fleet.asks_everyone else f" of {fleet.population}")
    return (
        _arriving(f"{name}: {asked} a round, {counted(len(layers), 'layer')}", layers, rows),
        _worth(f"{seconds(plan.task.seconds)} to spend", rows, plan, own_deadline),
    )


def _arriving(title: str, layers: Sequence[str], rows: Sequence[Outlook]) -> Table:
    shown = _some(len(layers), _MOST_LAYERS)
    result = Table(
        title=Text(title),
        caption="depth: layers conveyed per client; p: chance that nobody conveys a layer (input to output); kept: of "
        "the finished work, and by dropping the late",
    )
    result.add_column("deadline", style="bold", justify="right")
    for heading in ("depth", *(f"p {layers[index]}" for index in shown), "kept", "dropping"):
        result.add_column(Text(heading), justify="right")
    for outlook in rows:
        result.add_row(
            seconds(outlook.deadline_seconds),
            f"{outlook.mean_depth:.2f}",
            *(_chance(float(outlook.empty[index])) for index in shown),
            percent(outlook.kept),
            percent(outlook.kept_by_dropping),
        )
    return result


def _worth(title: str, rows: Sequence[Outlook], plan: DeadlinePlan, own_deadline: float) -> Table:
    result = Table(
        title=Text(title),
        caption="variance: factor of the clients' differences; imbalance: how unequally clients take part (each in the "
        "worst layer); bound, estimate: error after the time to spend, relative to waiting for everyone",
    )
    result.add_column("deadline", style="bold", justify="right")
    for heading in ("variance", "imbalance", "round", "bound", "estimate"):
        result.add_column(heading, justify="right")
    result.add_column("")
    for outlook in rows:
        own = "as it is" if outlook.deadline_seconds == own_deadline else ""
        result.add_row(
            seconds(outlook.deadline_seconds),
            _number(float(outlook.variance_factor.max())),
            _number(float(outlook.imbalance.max())),
            seconds(outlook.round_seconds),
            _number(outlook.bound / plan.waiting_estimate),
            _number(outlook.estimate / plan.waiting_estimate),
            Text("recommended", "green") if outlook is plan.best else own,
        )
    return result


def advice(layers: Sequence[str], plan: DeadlinePlan) -> Iterator[str]:
    """Yield what to do, and what to beware of, a line each."""
    best, adaptive = plan.best, plan.adaptive
    yield (
        f"recommended: a deadline of {seconds(best.deadline_seconds)}, {counted(best.rounds, 'round')} of "
        f"{seconds(best.round_seconds)}; waiting for everyone takes {seconds(plan.waiting_seconds)} a round"
    )
    fifths = [part.mean() for part in np.array_split(adaptive.deadlines_seconds, 5) if len(part)]
    gain = 1 - adaptive.estimate / best.estimate
    yield (
        f"adaptive: {counted(len(adaptive.deadlines_seconds), 'round')}, deadlines of "
        f"{', '.join(seconds(float(fifth)) for fifth in fifths)} on average in each fifth of them; "
        f"estimate {percent(gain)} lower"
    )
    worst = int(best.imbalance.argmax())
    if best.imbalance[worst] > _UNEQUAL:
        left_out = float(best.out_of_reach[worst])
        yield (
            f"beware: clients take part unequally in layer {layers[worst]} (imbalance {best.imbalance[worst]:.2f}; "
            f"{percent(left_out)} of them hardly ever reach it), so it learns from the fast ones' data; give slow "
            "clients smaller batches, choose a longer deadline, or the rule inverse-probability or memory"
        )


def as_object(
    name: str, layers: Sequence[str], fleet: Fleet, own_deadline: float, plan: DeadlinePlan
) -> dict[str, object]:
    """Return the plan as what JSON can hold; what is infinite or unknown is None."""
    task = plan.task
    return {
        "plan": name,
        "layers": list(layers),
        "clients": fleet.population,
        "asked": fleet.asked,
        "budget_s": task.seconds,
        "own_deadline_s": own_deadline,
        "steps": task.steps,
        "constants": {**vars(task.constants), "initial_error": task.initial_error},
        "waiting": {"round_s": finite(plan.waiting_seconds), "estimate": finite(plan.waiting_estimate)},
        "deadlines": [_as_object(outlook) for outlook in plan.outlooks],
        "recommended": _as_object(plan.best),
        "adaptive": {
            "deadlines_s": plan.adaptive.deadlines_seconds.tolist(),
            "estimate": plan.adaptive.estimate,
        },
    }


def _as_object(outlook: Outlook) -> dict[str, object]:
    def listed(values: Floats) -> list[float | None]:
        return [finite(value) for value in values.tolist()]

    return {
        "deadline_s": outlook.deadline_seconds,
        "mean_depth": outlook.mean_depth,
        "empty": listed(outlook.empty),
        "work_kept": finite(outlook.kept),
        "work_kept_by_dropping": finite(outlook.kept_by_dropping),
        "variance_factor": listed(outlook.variance_factor),
        "imbalance": listed(outlook.imbalance),
        "out_of_reach": listed(outlook.out_of_reach),
        "round_s": outlook.round_seconds,
        "rounds": outlook.rounds,
        "bound": finite(outlook.bound),
        "estimate": finite(outlook.estimate),
    }


def _rows(plan: DeadlinePlan, own_deadline: float) -> list[Outlook]:
    """Choose a dozen outlooks, evenly from all of them."""
    some = _some(len(plan.outlooks), _MOST_ROWS)
    return [
        outlook
        for index, outlook in enumerate(plan.outlooks)
        if index in some or outlook is plan.best or outlook.deadline_seconds == own_deadline
    ]


def _some(count: int, most: int) -> list[int]:
    """Return at most `most` of the first `count` numbers, first and last included."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most)).tolist()})


def _number(value: float) -> str:
    """Write a number with two significant digits; a rounding error is 0.

    >>> _number(0.01234), _number(1e-17), _number(float("inf")), _number(float("nan"))
    ('0.012', '0', '∞', '–')
    """
    if math.isnan(value):
        return "–"
    if value < 1e-9:
        return "0"
    return f"{value:.2g}" if math.isfinite(value) else "∞"


def _chance(value: float) -> str:
    """Write a probability.

    >>> _chance(0.0), _chance(0.0004), _chance(0.25)
    ('0', '<0.001', '0.250')
    """
    return "0" if value < 1e-12 else "<0.001" if value < 0.001 else f"{value:.3f}"
