"""Deadlines that change over the rounds, to lower the bound most in a given time.

A time budget is divided among the rounds by solving a separable convex problem.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy

from salf.errors import InvalidSetting, check_count, check_positive
from salf.theory.convergence import Constants, deadline_noise, decaying_steps, error_weights
from salf.values import Floats

_POINTS = 2048  # deadlines tabulated between the shortest and the longest: 1 % apart for a range of 10⁹
_SCAN = 24
_SMALLEST_WEIGHT = 1e-200  # relative to the largest; rounds below it do not count


@dataclass(frozen=True)
class AdaptiveDeadlines:
    """A schedule of deadlines, with the batches and the bound that belong to it.

    Attributes:
        deadlines_seconds: T_t, shape (rounds,).
        layer_seconds: m, the mean time of each client for one layer of its batch; see `scaled_batches`.
        bound: The bound on E‖w − w*‖² after the last round.
    """

    deadlines_seconds: Floats
    layer_seconds: float
    bound: float


def adaptive_deadlines(
    *,
    constants: Constants,
    num_layers: int,
    rounds: int,
    total_seconds: float,
    initial_error: float,
    rates: npt.ArrayLike,
    communication_seconds: npt.ArrayLike = 0.0,
    least_seconds: float | None = None,
    layer_seconds: float | None = None,
    step_sizes: npt.ArrayLike | None = None,
) -> AdaptiveDeadlines:
    """Choose deadlines T_1 … T_R and the batch scale m that minimise the bound.

    The idea is ADEL-FL's (arXiv 2505.23973). With the batches of `scaled_batches` every client takes m seconds per
    layer on average, and p_{t,l} = Q(L + 1 − l, T_t/m)^U for exponential layer times. A larger m means larger batches
    and less noise, but less depth. For given m the problem is convex and solved exactly (docs/theory.md).

    Args:
        constants: The learning problem; a batch of S examples has the noise `gradient_variance`/S.
        num_layers: L, at least 1.
        rounds: R, at least 1.
        total_seconds: The budget: Σ T_t ≤ total.
        initial_error: ‖w_1 − w*‖².
        rates: P_u > 0, examples per second through one layer, shape (clients,).
        communication_seconds: B_u ≥ 0, time to receive and send, one number or shape (clients,).
        least_seconds: The shortest deadline, longer than every B_u; None: 1.05 max B_u, or a hundredth of the average
            deadline if that is longer.
        layer_seconds: m > 0; None: the best between the m at which the slowest client's batch is one example and the
            average deadline.
        step_sizes: As in `bound`; None: 1/(ρ_c (t + γ)), as in the authors' code.

    >>> constants = Constants(
    ...     smoothness=2, strong_convexity=1, gradient_variance=4, second_moment=1, heterogeneity=0, num_clients=20
    ... )
    >>> schedule = adaptive_deadlines(
    ...     constants=constants, num_layers=5, rounds=100, total_seconds=600.0, initial_error=1.0, rates=[16.0] * 20
    ... )
    >>> schedule.deadlines_seconds[[0, 49, 99]].round(2), round(schedule.layer_seconds, 3), round(schedule.bound, 3)
    (array([6.29, 5.98, 5.84]), 1.458, 0.493)
    """
    clients = _Clients.checked(rates, communication_seconds, constants.num_clients)
    check_count("num_layers", num_layers)
    check_count("rounds", rounds)
    average = total_seconds / rounds
    least = clients.shortest(rounds, total_seconds, least_seconds)
    steps = decaying_steps(constants=constants, rounds=rounds, scale=1.0) if step_sizes is None else step_sizes
    weights = error_weights(constants=constants, step_sizes=steps)
    grid = np.geomspace(least, total_seconds - (rounds - 1) * least, _POINTS) if rounds > 1 else np.array([average])

    def spend(scale: float) -> tuple[Floats, float]:
        """Return the best deadlines for a given m, and the weighted noise that they leave."""
        table = clients.noise(constants, num_layers, scale, grid)
        spent = allocate_seconds(seconds=grid, noise=table, weights=weights, total_seconds=total_seconds)
        return spent, float(weights @ clients.noise(constants, num_layers, scale, spent))

    scale = layer_seconds
    if scale is None:
        scale = _minimum(lambda each: spend(each)[1], 1 / clients.slowest(average), average)
    check_positive("layer_seconds", scale)
    deadlines, noise = spend(scale)
    remaining = float(np.prod(1 - constants.strong_convexity * np.asarray(steps)))
    return AdaptiveDeadlines(deadlines, scale, remaining * initial_error + noise)


def scaled_batches(
    *, layer_seconds: float, rates: npt.ArrayLike, deadline_seconds: float, communication_seconds: npt.ArrayLike = 0.0
) -> Floats:
    """Return batches S_u that give every client the same distribution of depths.

    S_u = m P_u (T − B_u)/T (ADEL-FL), as real numbers. Client u has T − B_u seconds to compute and takes S_u/P_u for a
    layer, so every client completes T/m layers on average. A batch has at least one example: a client for which the
    formula gives less remains slower than the others.

    Args:
        layer_seconds: m > 0.
        rates: P_u > 0, examples per second through one layer, shape (clients,), the shape of the result.
        deadline_seconds: T, longer than every B_u.
        communication_seconds: B_u ≥ 0, one number or shape (clients,).

    >>> scaled_batches(layer_seconds=0.5, rates=[8.0, 64.0], deadline_seconds=4.0, communication_seconds=[0.0, 1.0])
    array([ 4., 24.])
    """
    clients = _Clients.checked(rates, communication_seconds, np.size(rates))
    check_positive("layer_seconds", layer_seconds, finite=False)
    longest = float(clients.communication.max())
    if not deadline_seconds > longest:
        raise InvalidSetting(
            f"deadline_seconds is {deadline_seconds}; choose more than the longest communication, {longest:g} s"
        )
    batches = clients.batches(layer_seconds, np.array([deadline_seconds]))[0]
    return np.asarray(np.maximum(batches, 1.0), dtype=np.float64)


def _minimum(cost: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function is least between `low` and `high`.

    It scans a logarithmic scale, then refines around the best point by Brent's bounded method.
    """
    if low >= high:
        return low
    scan = np.linspace(math.log(low), math.log(high), _SCAN)
    costs = [cost(math.exp(place)) for place in scan]
    best = int(np.argmin(costs))
    around = (scan[max(best - 1, 0)], scan[min(best + 1, _SCAN - 1)])
    found = scipy.optimize.minimize_scalar(lambda place: cost(math.exp(place)), bounds=around, method="bounded")
    return math.exp(found.x if found.fun < costs[best] else scan[best])


@dataclass(frozen=True)
class _Clients:
    """Rates P_u and communication times B_u of the clients, both of shape (clients,)."""

    rates: Floats
    communication: Floats

    @classmethod
    def checked(cls, rates: npt.ArrayLike, communication_seconds: npt.ArrayLike, num_clients: int) -> "_Clients":
        """Return the clients, or raise `InvalidSetting` for wrong numbers."""
        speeds = np.asarray(rates, dtype=np.float64)
        if speeds.shape != (num_clients,) or not (np.isfinite(speeds) & (speeds > 0)).all():
            raise InvalidSetting(f"rates cannot be used; give {num_clients} positive numbers, one for each client")
        seconds = np.asarray(communication_seconds, dtype=np.float64)
        if seconds.shape not in ((), speeds.shape) or not (np.isfinite(seconds) & (seconds >= 0)).all():
            raise InvalidSetting(
                f"communication_seconds cannot be used; give one number ≥ 0, or {num_clients}, one for each client"
            )
        return cls(speeds, np.broadcast_to(seconds, speeds.shape))

    def shortest(self, rounds: int, total_seconds: float, least_seconds: float | None) -> float:
        """Return the shortest deadline; raise `InvalidSetting` for too small a budget."""
        average = total_seconds / rounds
        busiest = float(self.communication.max())
        least = max(1.05 * busiest, 0.01 * average) if least_seconds is None else least_seconds
        if not busiest < least <= average < math.inf:
            raise InvalidSetting(
                f"each of the {rounds} rounds needs at least {least:g} s, more than the longest communication of "
                f"{busiest:g} s, but {total_seconds:g} s allow {average:g} s; raise total_seconds or choose fewer "
                "rounds"
            )
        return least

    def batches(self, layer_seconds: float, deadlines: Floats) -> Floats:
        """Return m P_u (T − B_u)/T, shape (deadlines, clients)."""
        shares = 1 - self.communication / deadlines[:, None]
        return np.asarray(layer_seconds * self.rates * shares, dtype=np.float64)

    def slowest(self, deadline: float) -> float:
        """Return the least number of examples through one layer in a second of the round."""
        return float(self.batches(1.0, np.array([deadline])).min())

    def noise(self, constants: Constants, num_layers: int, layer_seconds: float, deadlines: Floats) -> Floats:
        """Return B + C at each deadline for exponential layer times, shape (deadlines,)."""
        inverse = (1 / self.batches(layer_seconds, deadlines)).mean(axis=1)
        distinct = np.unique(deadlines)  # many rounds may have the shortest deadline: evaluate it once
        late = scipy.special.gammaincc(np.arange(num_layers, 0, -1), distinct[:, None] / layer_seconds)
        waiting = deadline_noise(constants=constants, empty=late**constants.num_clients)
        sampling = constants.gradient_variance * inverse / constants.num_clients
        constant = 6 * constants.smoothness * constants.heterogeneity
        return np.asarray(sampling + constant + waiting[np.searchsorted(distinct, deadlines)], dtype=np.float64)


def allocate_seconds(
    *, seconds: npt.ArrayLike, noise: npt.ArrayLike, weights: npt.ArrayLike, total_seconds: float
) -> Floats:
    """Return the round lengths s_t that minimise Σ_t ω_t h(s_t) with Σ_t s_t = total.

    h is convex after its lower convex hull is taken: a length between two corners stands for a mixture of rounds. At
    the optimum every round gains the same from another second, ω_t h'(s_t) = −λ, or has the shortest or longest length
    of the table. Bisection finds the λ that spends the budget, in O(R log P) per step for R rounds and P points.

    Args:
        seconds: Round lengths, increasing, shape (points,).
        noise: h at these lengths, shape (points,); some values finite.
        weights: ω_t ≥ 0, not all 0, shape (rounds,), which is also the shape of the result.
        total_seconds: The budget, at least one shortest round each.

    >>> allocate_seconds(
    ...     seconds=np.linspace(1, 9, 801), noise=1 / np.linspace(1, 9, 801), weights=[1.0, 4.0], total_seconds=9.0
    ... ).round(3)
    array([3., 6.])
    """
    lengths, left = np.asarray(seconds, dtype=np.float64), np.asarray(noise, dtype=np.float64)
    shares = np.asarray(weights, dtype=np.float64)
    _check_table(lengths, left, shares)
    corners = lower_hull(seconds=lengths, noise=left)
    lengths, left = lengths[corners], left[corners]
    rounds = len(shares)
    if total_seconds < rounds * lengths[0] * (1 - 1e-12):
        raise InvalidSetting(
            f"{total_seconds:g} s are too little for {rounds} rounds of at least {lengths[0]:g} s; "
            "raise the budget or choose fewer rounds"
        )
    if total_seconds >= rounds * lengths[-1] or len(lengths) == 1:
        return np.full(rounds, lengths[-1])
    return _at_equal_gain(lengths, left, shares, total_seconds)


def lower_hull(*, seconds: npt.ArrayLike, noise: npt.ArrayLike) -> list[int]:
    """Return the indices of the corners of a table's lower convex hull.

    The hull ends at the least noise, and infinite noise is no corner (Andrew's monotone chain, 1979).

    Args:
        seconds: Increasing, shape (points,).
        noise: Shape (points,).

    >>> lower_hull(seconds=[1, 2, 3, 4, 5], noise=[np.inf, 8, 7, 2, 3])
    [1, 3]
    """
    places, values = np.asarray(seconds, dtype=np.float64), np.asarray(noise, dtype=np.float64)
    corners: list[int] = []
    for point in np.flatnonzero(np.isfinite(values[: int(values.argmin()) + 1])).tolist():
        while len(corners) > 1:
            before, last = corners[-2:]
            run, rise = places[last] - places[before], values[last] - values[before]
            if rise * (places[point] - places[before]) < run * (values[point] - values[before]):
                break
            corners.pop()
        corners.append(point)
    return corners


def _check_table(lengths: Floats, noise: Floats, weights: Floats) -> None:
    """Raise `InvalidSetting` for a table or weights that cannot be used."""
    if lengths.shape != noise.shape or lengths.ndim != 1 or (np.diff(lengths) <= 0).any():
        raise InvalidSetting("seconds and noise are no table; give seconds that increase, and as many values of noise")
    if not np.isfinite(noise).any():
        raise InvalidSetting("noise has no finite value; give longer rounds, some of them finite")
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise InvalidSetting("weights cannot be used; give finite numbers of at least 0, some of them positive")


def _at_equal_gain(lengths: Floats, noise: Floats, weights: Floats, total_seconds: float) -> Floats:
    """Return round lengths that all gain the same from another second."""
    # The gain of another second falls from segment to segment; the tabulated value is right in a segment's middle.
    gains = np.log(-np.diff(noise) / np.diff(lengths))
    gains = np.concatenate([gains[:1] + 1e-9, gains, gains[-1:] - 1e-9])
    middles = np.concatenate([lengths[:1], (lengths[1:] + lengths[:-1]) / 2, lengths[-1:]])
    own = np.log(np.maximum(weights, weights.max() * _SMALLEST_WEIGHT))

    def spent(price: float) -> Floats:
        """Return each round's length if a second costs e^price."""
        return np.asarray(np.interp(price - own, gains[::-1], middles[::-1]), dtype=np.float64)

    low, high = float(gains[-1] + own.min()) - 1, float(gains[0] + own.max()) + 1
    price = scipy.optimize.brentq(lambda price: float(spent(price).sum()) - total_seconds, low, high, xtol=1e-12)
    more, less = spent(price - 1e-9), spent(price + 1e-9)  # where lengths jump, the price alone cannot hit the budget
    between = (total_seconds - less.sum()) / max(more.sum() - less.sum(), 1e-300)
    return np.asarray(less + min(max(between, 0.0), 1.0) * (more - less), dtype=np.float64)
