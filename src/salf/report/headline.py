"""The sentence with which a page opens: what was compared, and which method won by how much."""

import math
from collections.abc import Sequence

from salf.report.numbers import Outcome

_MOST_NAMED = 4  # methods that the sentence names one by one
_TIE = 1.005  # a ratio of times that rounds to 1.00


def headline(outcomes: Sequence[Outcome], experiments: Sequence[str], target: float) -> str:
    """Return one sentence about the outcome of a report.

    The first group that reaches the target in every run wins. If there is none, the best accuracy comes first.

    Args:
        outcomes: The outcome of each group.
        experiments: The names of the experiments, each once.
        target: The accuracy to which runs are timed, 0 to 1; NaN if there is none.
    """
    on = f" on {experiments[0]}" if len(experiments) == 1 else ""
    goal = f"the target of {100 * target:.4g} % test accuracy"
    tested = [one for one in outcomes if math.isfinite(one.figures.accuracy)]
    unfinished = any(one.figures.rounds < one.figures.planned for one in outcomes)
    if len(outcomes) == 1:
        return f"{'So far, ' if unfinished else ''}{_of_one(outcomes[0], on, goal, target)}."
    compared = f"{_joined([one.label for one in outcomes])}{on}{_over_seeds(outcomes)}"
    if not tested:
        return f"This page compares {compared}; no round has been tested yet."
    winner = min(outcomes, key=lambda one: one.seconds)
    told = _of_winner(winner, outcomes, goal) if math.isfinite(winner.seconds) else _of_best(tested, goal)
    return f"{'So far, of' if unfinished else 'Of'} {compared}, {told}."


def _of_one(outcome: Outcome, on: str, goal: str, target: float) -> str:
    """Describe a single group."""
    figures, seeds = outcome.figures, outcome.figures.seeds
    who = f"{outcome.label}{on} (" + (f"seed {seeds[0]})" if len(seeds) == 1 else f"mean of {len(seeds)} seeds)")
    took = f"{figures.rounds} round{'' if figures.rounds == 1 else 's'} and {_seconds(figures.time_s)} of virtual time"
    if not math.isfinite(figures.accuracy):
        return f"{who} has completed {took}, and no round has been tested yet"
    parts = [f"{who} achieved {100 * figures.accuracy:.1f} % test accuracy after {took}"]
    if math.isfinite(outcome.seconds):
        parts.append(f"reached {goal} after {_seconds(outcome.seconds)}")
    elif outcome.reached:
        parts.append(f"reached {goal} in {outcome.reached} of {len(seeds)} runs")
    elif math.isfinite(target):
        parts.append(f"did not reach {goal}")
    return _listed([*parts, *_work(outcome, [])])


def _of_winner(winner: Outcome, outcomes: Sequence[Outcome], goal: str) -> str:
    """Describe the group that reached the target first, and how much sooner than the next one and `fedavg`."""
    others = sorted((one for one in outcomes if one is not winner), key=lambda one: one.seconds)
    rivals = [one for one in others if math.isfinite(one.seconds)]
    ties = [one.label for one in rivals if one.seconds < winner.seconds * _TIE]
    if ties:
        names = "all" if len(ties) == len(others) else _joined([winner.label, *ties])
        return f"{names} reached {goal} at the same time, after {_seconds(winner.seconds)} of virtual time"
    place = "the first" if rivals else "the only one"
    where = " in every run" if not rivals and any(one.reached for one in others) else ""
    after = f"{winner.label} was {place} to reach {goal}{where}, after {_seconds(winner.seconds)} of virtual time"
    baseline = [one for one in rivals if _method(one.label) == "fedavg"][:1]
    faster = " and ".join(
        f"{one.seconds / winner.seconds:.2f} times as fast as {one.label} ({_seconds(one.seconds)})"
        for one in dict.fromkeys([*rivals[:1], *baseline])
    )
    return _listed([f"{after}, {faster}" if faster else after, *_work(winner, others)])


def _of_best(tested: Sequence[Outcome], goal: str) -> str:
    """Describe the group with the best accuracy where no group reached the target in every run."""
    best, *others = sorted(tested, key=lambda one: -one.figures.accuracy)
    rival = f" ({others[0].label}: {100 * others[0].figures.accuracy:.1f} %)" if others else ""
    where = " in every run" if any(one.reached for one in tested) else ""
    achieved = f"{best.label} achieved the best test accuracy, {100 * best.figures.accuracy:.1f} %{rival}"
    return _listed([f"none reached {goal}{where}; {achieved}", *_work(best, others)])


def _work(outcome: Outcome, others: Sequence[Outcome]) -> list[str]:
    """Return the share of work that was kept, beside that of the others; of many others, beside that of the first."""
    if not math.isfinite(outcome.figures.work_kept):
        return []
    shown = others if len(others) < _MOST_NAMED else others[:1]
    shares = [(one.label, one.figures.work_kept) for one in shown]
    beside = [f"{label}: {100 * share:.3g} %" for label, share in shares if math.isfinite(share)]
    kept = f"kept {100 * outcome.figures.work_kept:.3g} % of its clients' finished work"
    return [f"{kept} ({', '.join(beside)})" if beside else kept]


def _over_seeds(outcomes: Sequence[Outcome]) -> str:
    counts = {len(one.figures.seeds) for one in outcomes}
    if counts == {1}:
        return ""
    return f" (means of {counts.pop()} seeds)" if len(counts) == 1 else " (means over seeds)"


def _joined(names: Sequence[str]) -> str:
    """Join names, or count them if they are many or long.

    >>> _joined(["drop", "fedavg", "salf"]), _joined(["salf · rounds = 10", "salf · rounds = 20"])
    ('drop, fedavg and salf', '2 variants')
    """
    if len(names) > _MOST_NAMED or any(_method(name) != name for name in names):
        return f"{len(names)} {'methods' if len(set(map(_method, names))) == len(names) else 'variants'}"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _method(label: str) -> str:
    """Return the method of a group, with which its label begins."""
    return label.partition(" · ")[0]


def _listed(parts: Sequence[str]) -> str:
    """Join clauses with the same subject.

    >>> _listed(["salf won", "kept all", "was fast"])
    'salf won, kept all, and was fast'
    """
    if len(parts) < 3:
        return ", and ".join(parts) if any("," in part for part in parts) else " and ".join(parts)
    return f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
