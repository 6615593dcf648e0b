"""What to expect of each deadline in a given time, and the best one."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from salf import theory
from salf.errors import InvalidSetting
from salf.planning.fleet import Fleet
from salf.values import Floats, Ints

_CANDIDATES = 40
_MOST_EMPTY = 0.5  # above it the rule `Corrected` caps its correction, and its step is too short
_MOST_ROUNDS = 1_000_000
_MOST_SCHEDULED = 20_000  # rounds in a schedule of changing deadlines
_RARELY = 0.01

# For a problem with unknown constants: well conditioned, data similar but not equal. They allow comparing deadlines by
# the ratios of their bounds; the bounds themselves mean little.
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
    """A learning problem, a schedule of step sizes, and the time to spend on it.

    Attributes:
        constants: Those of the bound (docs/theory.md).
        initial_error: ‖w_1 − w*‖², at least 0.
        seconds: Virtual time to spend.
        steps: η_t is 1/(ρ_c (t + γ)) for "adel", 2/(ρ_c (t + γ)) for "decaying", 1/(ρ_c (1 + γ)) for "constant".

    >>> constants = theory.Constants(num_clients=10, **{name: ASSUMED[name] for name in [*ASSUMED][:5]})
    >>> Task(constants, initial_error=1.0, seconds=60.0).rounds(round_seconds=2.5)
    24
    """

    constants: theory.Constants
    initial_error: float
    seconds: float
    steps: str = "adel"

    def step_sizes(self, rounds: int) -> Floats:
        """Return the step sizes η_t, shape (rounds,)."""
        if self.steps == "constant":
            return np.full(rounds, 1 / (self.constants.strong_convexity * (1 + self.constants.shift)))
        scale = 1.0 if self.steps == "adel" else 2.0
        return theory.decaying_steps(constants=self.constants, rounds=rounds, scale=scale)

    def error(self, noise: Floats) -> float:
        """Return the bound after rounds of given noise per squared step size."""
        sizes = self.step_sizes(len(noise))
        decay = 1 - self.constants.strong_convexity * sizes
        return float(theory.recursion(decay=decay, added=sizes**2 * noise, start=self.initial_error)[-1])

    def rounds(self, round_seconds: float) -> int:
        """Return how many rounds of a length fit, from 0 to a million."""
        return min(int(self.seconds / round_seconds * (1 + 1e-9)), _MOST_ROUNDS)

    def bias(self, imbalance: float) -> float:
        """Return 2 ρ_s Γ χ²/ρ_c², a bound on the squared bias of unequal participation."""
        given = self.constants
        return 2 * given.smoothness * given.heterogeneity * imbalance / given.strong_convexity**2

    def exact_noise(self, factor: Floats, empty: Floats) -> float:
        """Return B + C with the exact variance, for a_l and p_l of shape (layers,)."""
        extra = theory.variance_noise(constants=self.constants, factor=factor, empty=empty)
        return self.constants.sampling_noise + extra


@dataclass(frozen=True)
class Outlook:
    """What to expect of one deadline.

    Arrays have shape (layers,), input to output. `bound` and `estimate` are infinite if no round fits into the time, or
    if a layer has no contributor in more than half of the rounds.

    Attributes:
        deadline_seconds: The deadline.
        mean_depth: Mean number of layers that a client sends.
        empty: p_l, the probability that no client sends the layer.
        kept: Share of the finished backward work that layer-wise updates keep.
        kept_by_dropping: Share that remains if unfinished clients are dropped.
        variance_factor: a_l, by which the clients' differences enter a step.
        imbalance: χ²_l, how unequally clients take part.
        out_of_reach: Share of clients that reach the layer in fewer than 1 % of their rounds.
        round_seconds: Mean duration of a round.
        rounds: How many rounds fit into the task's time.
        bound: The bound after these rounds.
        estimate: The same recursion with the exact variance and the possible bias.
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
    """A schedule of changing deadlines that takes the given time, and its estimate."""

    deadlines_seconds: Floats
    estimate: float


@dataclass(frozen=True)
class DeadlinePlan:
    """The result of `make_plan`.

    Attributes:
        task: The task that was planned for.
        outlooks: One per deadline, in increasing order.
        best: The outlook with the lowest estimate.
        adaptive: A schedule of changing deadlines.
        waiting_seconds: Mean duration of a round that waits for all clients.
        waiting_estimate: Error after the given time when each round waits for all clients.
    """

    task: Task
    outlooks: tuple[Outlook, ...]
    best: Outlook
    adaptive: AdaptiveOutlook
    waiting_seconds: float
    waiting_estimate: float


def make_plan(fleet: Fleet, task: Task, own_deadline: float, deadlines: Iterable[float] = ()) -> DeadlinePlan:
    """Compare deadlines and choose the one with the lowest estimate.

    Args:
        fleet: The federation.
        task: The learning problem and the time to spend.
        own_deadline: The experiment's deadline in seconds, which is compared too.
        deadlines: Compare exactly these; empty: 40 from almost no finished work to all of it, and `own_deadline`.

    Raises:
        InvalidSetting: No deadline allows a round in the given time, or all leave a layer empty in most rounds.
    """
    candidates = sorted({*map(float, deadlines)} or {*fleet.rounds.deadlines(_CANDIDATES).tolist(), own_deadline})
    outlooks = tuple(outlook_at(fleet, task, deadline) for deadline in candidates)
    best = min(outlooks, key=lambda outlook: outlook.estimate)
    if not math.isfinite(best.estimate):
        raise InvalidSetting(_why_none(task, outlooks))
    waiting = fleet.rounds.round_seconds()
    rounds = task.rounds(waiting)
    without = task.error(np.full(rounds, task.constants.sampling_noise)) if rounds else math.inf
    return DeadlinePlan(task, outlooks, best, _adapt(task, outlooks, best), waiting, without)


def _why_none(task: Task, outlooks: Iterable[Outlook]) -> str:
    """Return the message for a plan in which no deadline can be used."""
    enough = [outlook.round_seconds for outlook in outlooks if outlook.empty.max() <= _MOST_EMPTY]
    if not enough:
        return "every deadline leaves some layer without a contributor in most rounds; try longer deadlines"
    return f"the budget of {task.seconds:g} s is shorter than a round of {min(enough):g} s; raise the budget"


def outlook_at(fleet: Fleet, task: Task, deadline_seconds: float) -> Outlook:
    """Return what to expect of one deadline, in seconds."""
    reach = fleet.reach(deadline_seconds)
    empty = fleet.empty(reach)
    factor, imbalance = _unevenness(fleet, reach)
    lasting = fleet.rounds.round_seconds(deadline_seconds)
    kept, dropping = fleet.rounds.kept(deadline_seconds, np.asarray(fleet.workload.costs.backward))
    rounds = task.rounds(lasting)
    bound = estimate = math.inf
    if rounds and empty.max() <= _MOST_EMPTY:
        worst = task.constants.sampling_noise + float(theory.deadline_noise(constants=task.constants, empty=empty))
        bound = task.error(np.full(rounds, worst))
        estimate = task.error(np.full(rounds, task.exact_noise(factor, empty))) + task.bias(float(imbalance.max()))
    return Outlook(
        deadline_seconds=deadline_seconds,
        mean_depth=float(reach.sum(axis=1).mean()),
        empty=empty,
        kept=kept,
        kept_by_dropping=dropping,
        variance_factor=factor,
        imbalance=imbalance,
        out_of_reach=np.asarray((reach < _RARELY).mean(axis=0), dtype=np.float64),
        round_seconds=lasting,
        rounds=rounds,
        bound=bound,
        estimate=estimate,
    )


def _unevenness(fleet: Fleet, reach: Floats) -> tuple[Floats, Floats]:
    """Return variance factor and imbalance of each layer, both of shape (layers,)."""
    if fleet.asks_everyone:
        return theory.variance_factor(reach=reach), theory.imbalance(reach=reach)
    # A client takes part only if it is drawn; the drawn clients count as independent draws.
    factor = theory.variance_factor(reach=reach.mean(axis=0), num_clients=fleet.asked)
    return factor, theory.imbalance(reach=reach * fleet.asked / fleet.population)


def _adapt(task: Task, outlooks: tuple[Outlook, ...], best: Outlook) -> AdaptiveOutlook:
    """Share the time among rounds of deadlines no more biased than the best one."""
    allowed = float(best.imbalance.max()) * (1 + 1e-6) + 1e-3
    fair = [each for each in outlooks if math.isfinite(each.estimate) and each.imbalance.max() <= allowed]
    seconds, positions = np.unique([each.round_seconds for each in fair], return_index=True)
    noise = np.array([task.exact_noise(fair[place].variance_factor, fair[place].empty) for place in positions])
    deadlines = np.array([fair[place].deadline_seconds for place in positions])
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


def _mixed(lengths: Floats, possible: Floats) -> Ints:
    """Replace lengths by a mixture of possible ones; return the indices of those.

    At no time has the mixture spent more than the lengths.
    """
    chosen = np.empty(len(lengths), dtype=np.int64)
    saved = 1e-9 * float(lengths[0])
    below = np.clip(np.searchsorted(possible, lengths, side="right") - 1, 0, len(possible) - 1)
    for place, (length, low) in enumerate(zip(lengths.tolist(), below.tolist(), strict=True)):
        high = min(low + 1, len(possible) - 1)
        index = high if possible[high] <= length + saved else low
        saved += length - float(possible[index])
        chosen[place] = index
    return chosen
