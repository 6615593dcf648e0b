"""What a deadline would do to a federation, and which one to choose for a time that is given."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from salf import theory
from salf.errors import InvalidSetting
from salf.planning.fleet import Fleet
from salf.values import Floats

_CANDIDATES = 40
_MOST_EMPTY = 0.5  # beyond, the rule `Corrected` caps its correction and its step is too short
_MOST_ROUNDS = 1_000_000
_MOST_SCHEDULED = 20_000  # rounds in a schedule of changing deadlines

# For a problem whose constants nobody knows: well conditioned, data alike but not equal. Ratios between deadlines are
# what can be read off then, not the bounds themselves.
ASSUMED = {
    "smoothness": 4.0,
    "strong_convexity": 1.0,
    "gradient_variance": 1.0,
    "second_moment": 1.0,
    "heterogeneity": 0.05,
    "initial_error": 1.0,
}
STEPS = ("adel", "decaying", "constant")


@dataclass(frozen=True)
class Task:
    """What the time is spent on: a learning problem, a schedule of step sizes, and `seconds` of virtual time."""

    constants: theory.Constants
    initial_error: float
    seconds: float
    steps: str = "adel"

    def step_sizes(self, rounds: int) -> Floats:
        """Return η_t: 1/(ρ_c (t + γ)) for "adel", 2/(ρ_c (t + γ)) for "decaying", 1/(ρ_c (1 + γ)) for "constant"."""
        if self.steps == "constant":
            return np.full(rounds, 1 / (self.constants.strong_convexity * (1 + self.constants.shift)))
        scale = 1.0 if self.steps == "adel" else 2.0
        return theory.decaying_steps(constants=self.constants, rounds=rounds, scale=scale)

    def error(self, noise: Floats) -> float:
        """Return the bound after rounds that add `noise`, shape (rounds,), per squared step size."""
        sizes = self.step_sizes(len(noise))
        decay = 1 - self.constants.strong_convexity * sizes
        return float(theory.recursion(decay=decay, added=sizes**2 * noise, start=self.initial_error)[-1])

    def rounds(self, round_seconds: float) -> int:
        """Return how many rounds of that length fit, at most a million; 0 where not even one does."""
        return min(int(self.seconds / round_seconds * (1 + 1e-9)), _MOST_ROUNDS)

    def bias(self, imbalance: float) -> float:
        """Return how far from the optimum an unequal participation may lead, squared: 2 ρ_s Γ χ²/ρ_c²."""
        given = self.constants
        return 2 * given.smoothness * given.heterogeneity * imbalance / given.strong_convexity**2


@dataclass(frozen=True)
class Outlook:
    """What to expect of one deadline; arrays over layers run from input to output.

    `mean_depth`: layers that a client conveys on average. `empty`: p_l. `kept` and `kept_by_dropping`: shares of the
    finished work. `variance_factor`: a_l, by how much the clients' differences enter a step. `imbalance`: χ²_l, how
    unequally clients take part. `out_of_reach`: the share of clients that hardly ever (in less than 1 % of the rounds)
    reach each layer. `round_seconds`: mean duration. Then, for the time that is given: the number of `rounds`, the
    `bound` of the theorem, and `estimate`, the same recursion with the exact variance and the possible bias. Both are
    infinite where the budget allows no round, or where a layer is conveyed by nobody in more than half of the rounds.
    """

    deadline_seconds: float
    mean_depth: float
    empty: Floats
    kept: float
    kept_by_dropping: float
    variance_factor: Floats
    imbalance: Floats
    out_of_reach: Floats
    round_seconds: float
    rounds: int
    bound: float
    estimate: float


@dataclass(frozen=True)
class AdaptiveOutlook:
    """Deadlines that change over the rounds, which together take the given time, and the estimate that they lead to."""

    deadlines_seconds: Floats
    estimate: float


@dataclass(frozen=True)
class DeadlinePlan:
    """Outlooks in order of their deadlines, the best of them, a changing schedule, and waiting for everyone."""

    task: Task
    outlooks: tuple[Outlook, ...]
    best: Outlook
    adaptive: AdaptiveOutlook
    waiting_seconds: float
    waiting_estimate: float


def make_plan(fleet: Fleet, task: Task, own_deadline: float, deadlines: Iterable[float] = ()) -> DeadlinePlan:
    """Look at deadlines from hardly any work to all of it, or at those given, and choose the best for the task.

    `own_deadline` is the one that the experiment has. Raises `InvalidSetting` where no round fits into the time.
    """
    candidates = sorted({*map(float, deadlines)} or {*fleet.rounds.deadlines(_CANDIDATES).tolist(), own_deadline})
    outlooks = tuple(look(fleet, task, deadline) for deadline in candidates)
    best = min(outlooks, key=lambda outlook: outlook.estimate)
    if not math.isfinite(best.estimate):
        raise InvalidSetting(_why_none(task, outlooks))
    waiting = fleet.rounds.round_seconds()
    rounds = task.rounds(waiting)
    without = task.error(np.full(rounds, task.constants.sampling_noise)) if rounds else math.inf
    return DeadlinePlan(task, outlooks, best, _adapt(task, outlooks, best), waiting, without)


def _why_none(task: Task, outlooks: Iterable[Outlook]) -> str:
    """Say why no deadline will do, and what to change."""
    enough = [outlook.round_seconds for outlook in outlooks if outlook.empty.max() <= _MOST_EMPTY]
    if not enough:
        return "by every deadline considered some layer is conveyed by nobody in most rounds; consider longer deadlines"
    return f"the budget of {task.seconds:g} s is shorter than a round of {min(enough):g} s; raise the budget"


def look(fleet: Fleet, task: Task, deadline_seconds: float) -> Outlook:
    """Return what to expect of one deadline."""
    reach = fleet.reach(deadline_seconds)
    empty = fleet.empty(reach)
    if fleet.asks_everyone:
        factor, imbalance = theory.variance_factor(reach=reach), theory.imbalance(reach=reach)
    else:  # a client takes part with the chance of being asked besides; those asked are as if drawn one by one
        factor = theory.variance_factor(reach=reach.mean(axis=0), num_clients=fleet.asked)
        imbalance = theory.imbalance(reach=reach * fleet.asked / fleet.population)
    lasting = fleet.rounds.round_seconds(deadline_seconds)
    kept, dropping = fleet.rounds.kept(deadline_seconds, np.asarray(fleet.workload.costs.backward))
    outlook = Outlook(
        deadline_seconds=deadline_seconds,
        mean_depth=float(reach.sum(axis=1).mean()),
        empty=empty,
        kept=kept,
        kept_by_dropping=dropping,
        variance_factor=factor,
        imbalance=imbalance,
        out_of_reach=np.asarray((reach < 0.01).mean(axis=0), dtype=np.float64),
        round_seconds=lasting,
        rounds=task.rounds(lasting),
        bound=math.inf,
        estimate=math.inf,
    )
    if not outlook.rounds or empty.max() > _MOST_EMPTY:
        return outlook
    base, worst = task.constants.sampling_noise, theory.deadline_noise(constants=task.constants, empty=empty)
    return replace(
        outlook,
        bound=task.error(np.full(outlook.rounds, base + float(worst))),
        estimate=task.error(np.full(outlook.rounds, _noise(task, outlook))) + task.bias(float(imbalance.max())),
    )


def _noise(task: Task, outlook: Outlook) -> float:
    """Return B + C by the exact variance of a round at this deadline."""
    extra = theory.variance_noise(constants=task.constants, factor=outlook.variance_factor, empty=outlook.empty)
    return task.constants.sampling_noise + extra


def _adapt(task: Task, outlooks: tuple[Outlook, ...], best: Outlook) -> AdaptiveOutlook:
    """Share the time among rounds of different deadlines, none of which is more biased than the best constant one."""
    allowed = float(best.imbalance.max()) * (1 + 1e-6) + 1e-3
    fair = [each for each in outlooks if math.isfinite(each.estimate) and each.imbalance.max() <= allowed]
    seconds, positions = np.unique([each.round_seconds for each in fair], return_index=True)
    noise = np.array([_noise(task, fair[position]) for position in positions])
    deadlines = np.array([fair[position].deadline_seconds for position in positions])
    corners = theory.lower_hull(seconds=seconds, noise=noise)
    seconds, noise, deadlines = seconds[corners], noise[corners], deadlines[corners]
    found = AdaptiveOutlook(np.full(best.rounds, best.deadline_seconds), best.estimate)
    for rounds in sorted({min(task.rounds(length), _MOST_SCHEDULED) for length in seconds.tolist()}):
        weights = theory.error_weights(constants=task.constants, step_sizes=task.step_sizes(rounds))
        lengths = theory.allocate_seconds(seconds=seconds, noise=noise, weights=weights, total_seconds=task.seconds)
        chosen = _mixed(lengths, seconds)
        estimate = task.error(noise[chosen]) + task.bias(float(best.imbalance.max()))
        if estimate < found.estimate:
            found = AdaptiveOutlook(deadlines[chosen], estimate)
    return found


def _mixed(lengths: Floats, possible: Floats) -> npt.NDArray[np.int64]:
    """Replace lengths between two possible ones by a mixture that at no time has spent more; return their indices."""
    chosen = np.empty(len(lengths), dtype=np.int64)
    saved = 1e-9 * float(lengths[0])
    below = np.clip(np.searchsorted(possible, lengths, side="right") - 1, 0, len(possible) - 1)
    for place, (length, low) in enumerate(zip(lengths.tolist(), below.tolist(), strict=True)):
        high = min(low + 1, len(possible) - 1)
        index = high if possible[high] <= length + saved else low
        saved += length - float(possible[index])
        chosen[place] = index
    return chosen
