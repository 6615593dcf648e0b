"""A plan for people, as tables and advice, and as one JSON object."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from rich.table import Table
from rich.text import Text

from salf.cli.console import counted, percent, seconds, table_of
from salf.planning import DeadlinePlan, Fleet, Outlook

_MOST_LAYERS, _MOST_ROWS = 4, 12
_UNEQUAL = 0.25  # imbalance that brings a warning: a fifth of the clients never take part, the others equally
Columns = Mapping[str, Callable[[Outlook], str | Text]]
_SENT_CAPTION = (
    "layers sent: mean number per client\n"
    "P(missed): probability that no client sends the layer, input to output\n"
    "work kept: share of the finished work that enters the model, and if the work of stragglers is dropped"
)
_VALUE_CAPTION = (
    "variance factor: how much missing layers add to the effect of the clients' differences\n"
    "imbalance: how unequally clients take part (this and the factor for the worst layer)\n"
    "error bound, estimate: after the whole time, relative to waiting for every client"
)


def plan_tables(
    name: str, layers: Sequence[str], fleet: Fleet, own_deadline: float, plan: DeadlinePlan
) -> tuple[Table, Table]:
    """Return two tables with one row for each of about a dozen deadlines, the best and the experiment's own included.

    The first shows what clients send, the second what that is worth and what it costs.

    Args:
        name: What is planned, for the title.
        layers: The layers' names, input to output.
        fleet: The clients and their devices.
        own_deadline: The experiment's deadline, in seconds.
        plan: The plan.
    """
    # About a dozen, evenly from all of them.
    some = _some(len(plan.outlooks), _MOST_ROWS)
    rows = [
        outlook
        for index, outlook in enumerate(plan.outlooks)
        if index in some or outlook is plan.best or outlook.deadline_seconds == own_deadline
    ]
    asked = counted(fleet.asked, "client") + ("" if fleet.asks_everyone else f" of {fleet.population}")
    title = f"{name}: {asked} a round, {counted(len(layers), 'layer')}"
    sent = table_of(title, _sent_columns(layers), rows, caption=_SENT_CAPTION)
    value_columns = _value_columns(plan, own_deadline)
    return sent, table_of(f"{seconds(plan.task.seconds)} to spend", value_columns, rows, caption=_VALUE_CAPTION)


def _sent_columns(layers: Sequence[str]) -> Columns:
    """Return the columns of what clients send by each deadline; of many layers a few are shown."""

    def missed(index: int, one: Outlook) -> str:
        return _probability(float(one.empty[index]))

    return {
        "\ndeadline": lambda one: seconds(one.deadline_seconds),
        "layers\nsent": lambda one: f"{one.mean_depth:.2f}",
        **{f"P(missed)\n{layers[index]}": partial(missed, index) for index in _some(len(layers), _MOST_LAYERS)},
        "work\nkept": lambda one: percent(one.kept),
        "kept by\ndropping": lambda one: percent(one.kept_by_dropping),
    }


def _value_columns(plan: DeadlinePlan, own_deadline: float) -> Columns:
    """Return the columns of what the sent layers are worth, and how long rounds last.

    Bound and estimate are relative to waiting for every client.
    """

    def remark(one: Outlook) -> str | Text:
        own = "the experiment's" if one.deadline_seconds == own_deadline else ""
        return Text("recommended", "green") if one is plan.best else own

    return {
        "\ndeadline": lambda one: seconds(one.deadline_seconds),
        "variance\nfactor": lambda one: _two_digits(float(one.variance_factor.max())),
        "\nimbalance": lambda one: _two_digits(float(one.imbalance.max())),
        "mean\nround": lambda one: seconds(one.round_seconds),
        "error\nbound": lambda one: _two_digits(one.bound / plan.waiting_estimate),
        "error\nestimate": lambda one: _two_digits(one.estimate / plan.waiting_estimate),
        "": remark,
    }


def advice(layers: Sequence[str], plan: DeadlinePlan) -> Iterator[str]:
    """Yield recommendations and warnings, a line each.

    Args:
        layers: The layers' names, input to output.
        plan: The plan; a warning is given if its best deadline leaves clients out.
    """
    best, adaptive = plan.best, plan.adaptive
    yield (
        f"recommended: a deadline of {seconds(best.deadline_seconds)}, {counted(best.rounds, 'round')} of "
        f"{seconds(best.round_seconds)}; waiting for every client takes {seconds(plan.waiting_seconds)} a round"
    )
    fifths = [part.mean() for part in np.array_split(adaptive.deadlines_seconds, 5) if len(part)]
    gain = 1 - adaptive.estimate / best.estimate
    yield (
        f"adaptive deadlines: {counted(len(adaptive.deadlines_seconds), 'round')} in five parts with mean deadlines of "
        f"{', '.join(seconds(float(fifth)) for fifth in fifths)}; the error estimate is {percent(gain)} lower"
    )
    worst = int(best.imbalance.argmax())
    if best.imbalance[worst] > _UNEQUAL:
        left_out = float(best.out_of_reach[worst])
        yield (
            f"beware: clients take part unequally in layer {layers[worst]} (imbalance {best.imbalance[worst]:.2f}; "
            f"{percent(left_out)} of them hardly ever reach it), so it learns mostly from fast clients' data; give "
            "slow clients smaller batches, choose a longer deadline, or set the rule inverse-probability or memory"
        )


def plan_json(
    name: str, layers: Sequence[str], fleet: Fleet, own_deadline: float, plan: DeadlinePlan
) -> dict[str, object]:
    """Return the plan as one object.

    Args:
        name: What is planned.
        layers: The layers' names, input to output.
        fleet: The clients and their devices.
        own_deadline: The experiment's deadline, in seconds.
        plan: The plan; all of its deadlines are included.
    """
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
        "waiting": {"round_s": plan.waiting_seconds, "estimate": plan.waiting_estimate},
        "deadlines": [_outlook_json(outlook) for outlook in plan.outlooks],
        "recommended": _outlook_json(plan.best),
        "adaptive": {"deadlines_s": plan.adaptive.deadlines_seconds.tolist(), "estimate": plan.adaptive.estimate},
    }


def _outlook_json(outlook: Outlook) -> dict[str, object]:
    """Return one deadline under its keys in JSON, such as `round_s` and `work_kept`.

    Lists run over layers, input to output.
    """
    return {
        name.replace("seconds", "s").replace("kept", "work_kept"): value.tolist()
        if isinstance(value, np.ndarray)
        else value
        for name, value in vars(outlook).items()
    }


def _some(count: int, most: int) -> list[int]:
    """Return at most `most` of the first `count` numbers, first and last included."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most)).tolist()})


def _two_digits(value: float) -> str:
    """Write a number with two significant digits; a rounding error is 0.

    >>> _two_digits(0.01234), _two_digits(1e-17), _two_digits(float("inf")), _two_digits(float("nan"))
    ('0.012', '0', '∞', '–')
    """
    if math.isnan(value):
        return "–"
    if value < 1e-9:
        return "0"
    return f"{value:.2g}" if math.isfinite(value) else "∞"


def _probability(value: float) -> str:
    """Write a probability.

    >>> _probability(0.0), _probability(0.0004), _probability(0.25)
    ('0', '<0.001', '0.250')
    """
    return "0" if value < 1e-12 else "<0.001" if value < 0.001 else f"{value:.3f}"
