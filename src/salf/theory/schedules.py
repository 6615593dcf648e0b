"""Deadlines that change from round to round: how to spend a budget of time where it lowers the bound most (ADEL-FL)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, minimize_scalar
from scipy.special import gammaincc

from salf.theory.convergence import Constants, deadline_noise, decaying_steps, error_weights

Array = npt.NDArray[np.float64]
_POINTS = 2048  # deadlines tabulated between the shortest and the longest: 1 % apart for a range of 10⁹
_SCAN = 24
_FORGOTTEN = 1e-200  # a round that weighs less, relative to the one that weighs most, is as good as forgotten


@dataclass(frozen=True)
class AdaptiveDeadlines:
    """A schedule: `deadlines_seconds`, of shape (rounds,); the batch scale; and the bound after the last round.

    `layer_seconds` is m, the mean time that each client takes for one layer of its batch; see `scaled_batches`.
    """

    deadlines_seconds: Array
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
    """Choose deadlines T_1 … T_R and the batch scale m that minimise the bound under Σ T_t ≤ total, T_t ≥ least.

    `rates`, of shape (clients,), says how many examples a client takes through one layer in a second (P_u), and
    `communication_seconds` what receiving and sending take it (B_u). With the batches of `scaled_batches` every client
    takes m seconds for a layer on average, and with exponential layer times p_{t,l} = Q(L + 1 − l, T_t/m)^U. The noise
    of a batch of S examples is `constants.gradient_variance`/S. A larger m means larger batches, hence less noise, but
    less depth by the same deadline.

    `layer_seconds` fixes m; otherwise the best is searched between the m at which the slowest client's batch is one
    example, for an average deadline, and that deadline itself. `least_seconds` must exceed every communication time; by
    default it is a twentieth more, or a hundredth of the average deadline if that is longer. `step_sizes` are as in
    `bound`, by default 1/(ρ_c (t + γ)), as in the authors' code. For given m the problem is convex and solved exactly
    (`allocate_seconds`; docs/theory.md). Raises `ValueError` where the budget does not cover `least_seconds` a round.

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
    if num_layers < 1 or rounds < 1:
        raise ValueError(f"num_layers and rounds must be at least 1, not {num_layers} and {rounds}")
    average = total_seconds / rounds
    busiest = float(clients.communication.max())
    least = max(1.05 * busiest, 0.01 * average) if least_seconds is None else least_seconds
    if not busiest < least <= average < math.inf:
        raise ValueError(
            f"each of the {rounds} rounds needs at least {least:g} s, more than the longest communication of "
            f"{busiest:g} s, but {total_seconds:g} s allow {average:g} s; raise total_seconds or ask for fewer rounds"
        )
    steps = decaying_steps(constants=constants, rounds=rounds, scale=1.0) if step_sizes is None else step_sizes
    weights = error_weights(constants=constants, step_sizes=steps)
    grid = np.geomspace(least, total_seconds - (rounds - 1) * least, _POINTS) if rounds > 1 else np.array([average])

    def spend(scale: float) -> tuple[Array, float]:
        """Return the best deadlines for a given m, and the weighted noise that they leave."""
        table = clients.noise(constants, num_layers, scale, grid)
        spent = allocate_seconds(seconds=grid, noise=table, weights=weights, total_seconds=total_seconds)
        return spent, float(weights @ clients.noise(constants, num_layers, scale, spent))

    scale = layer_seconds
    if scale is None:
        scale = _least(lambda each: spend(each)[1], 1 / clients.slowest(average), average)
    elif not 0 < scale < math.inf:
        raise ValueError(f"layer_seconds must be positive, not {scale}")
    deadlines, noise = spend(scale)
    forgotten = float(np.prod(1 - constants.strong_convexity * np.asarray(steps)))
    return AdaptiveDeadlines(deadlines, scale, forgotten * initial_error + noise)


def scaled_batches(
    *, layer_seconds: float, rates: npt.ArrayLike, deadline_seconds: float, communication_seconds: npt.ArrayLike = 0.0
) -> Array:
    """Return the batches S_u = m P_u (T − B_u)/T that give every client the same distribution of depths, as reals ≥ 1.

    Client u has T − B_u seconds to compute and takes S_u/P_u for a layer, so it gets through (T − B_u) P_u/S_u = T/m
    layers on average, whoever it is. A batch cannot have less than one example: where 1 is returned for what should be
    less, the client is slower than the others after all.

    >>> scaled_batches(layer_seconds=0.5, rates=[8.0, 64.0], deadline_seconds=4.0, communication_seconds=[0.0, 1.0])
    array([ 4., 24.])
    """
    clients = _Clients.checked(rates, communication_seconds, np.size(rates))
    if not (layer_seconds > 0 and deadline_seconds > clients.communication.max()):
        raise ValueError(
            f"layer_seconds must be positive and deadline_seconds longer than every communication, "
            f"not {layer_seconds} and {deadline_seconds}"
        )
    return np.asarray(
        np.maximum(clients.batches(layer_seconds, np.array([deadline_seconds]))[0], 1.0), dtype=np.float64
    )


def allocate_seconds(
    *, seconds: npt.ArrayLike, noise: npt.ArrayLike, weights: npt.ArrayLike, total_seconds: float
) -> Array:
    """Share a time among rounds so that Σ_t ω_t h(s_t) is least, Σ_t s_t = total; shape (rounds,).

    `seconds`, increasing, and `noise` tabulate h, what a round of that length leaves; `weights` holds ω_t. The lower
    convex hull of the table is used: a length between two of its corners stands for a mixture of rounds. At the optimum
    every round gains the same from another second, ω_t h'(s_t) = −λ, or is as short or as long as the table allows;
    the one λ that spends the budget is found by bisection. Cost O(R log P) per step for R rounds and P points.

    >>> allocate_seconds(
    ...     seconds=np.linspace(1, 9, 801), noise=1 / np.linspace(1, 9, 801), weights=[1.0, 4.0], total_seconds=9.0
    ... ).round(3)
    array([3., 6.])
    """
    lengths, left = np.asarray(seconds, dtype=np.float64), np.asarray(noise, dtype=np.float64)
    shares = np.asarray(weights, dtype=np.float64)
    if lengths.shape != left.shape or lengths.ndim != 1 or (np.diff(lengths) <= 0).any() or not np.isfinite(left).any():
        raise ValueError("seconds must increase, and noise state as many values, some of them finite")
    if not (np.isfinite(shares) & (shares >= 0)).all() or not shares.any():
        raise ValueError("weights must be finite and not negative, and some of them positive")
    corners = lower_hull(seconds=lengths, noise=left)
    lengths, left = lengths[corners], left[corners]
    rounds = len(shares)
    if total_seconds < rounds * lengths[0] * (1 - 1e-12):
        raise ValueError(
            f"{total_seconds:g} s are too little for {rounds} rounds of at least {lengths[0]:g} s; "
            "raise the budget or ask for fewer rounds"
        )
    if total_seconds >= rounds * lengths[-1] or len(lengths) == 1:
        return np.full(rounds, lengths[-1])
    # What a second more gains falls from segment to segment; the tabulated value is right in a segment's middle.
    gains = np.log(-np.diff(left) / np.diff(lengths))
    gains = np.concatenate([gains[:1] + 1e-9, gains, gains[-1:] - 1e-9])
    middles = np.concatenate([lengths[:1], (lengths[1:] + lengths[:-1]) / 2, lengths[-1:]])
    own = np.log(np.maximum(shares, shares.max() * _FORGOTTEN))

    def spent(price: float) -> Array:
        """Return how long each round lasts when a second costs e^price."""
        return np.asarray(np.interp(price - own, gains[::-1], middles[::-1]), dtype=np.float64)

    low, high = float(gains[-1] + own.min()) - 1, float(gains[0] + own.max()) + 1
    price = brentq(lambda price: float(spent(price).sum()) - total_seconds, low, high, xtol=1e-12)
    more, less = spent(price - 1e-9), spent(price + 1e-9)  # where lengths jump, the price alone cannot hit the budget
    between = (total_seconds - less.sum()) / max(more.sum() - less.sum(), 1e-300)
    return np.asarray(less + min(max(between, 0.0), 1.0) * (more - less), dtype=np.float64)


def lower_hull(*, seconds: npt.ArrayLike, noise: npt.ArrayLike) -> list[int]:
    """Return the indices of the corners of a table's lower convex hull, as far as it falls (Andrew's monotone chain).

    Infinite noise is no corner; `seconds` increases.

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


def _least(cost: Callable[[float], float], low: float, high: float) -> float:
    """Return where between `low` and `high` a function of a logarithmic scale is least: by a scan, then by sections."""
    if low >= high:
        return low
    scan = np.linspace(math.log(low), math.log(high), _SCAN)
    costs = [cost(math.exp(place)) for place in scan]
    best = int(np.argmin(costs))
    around = (scan[max(best - 1, 0)], scan[min(best + 1, _SCAN - 1)])
    found = minimize_scalar(lambda place: cost(math.exp(place)), bounds=around, method="bounded")
    return math.exp(found.x if found.fun < costs[best] else scan[best])


@dataclass(frozen=True)
class _Clients:
    """How fast clients compute, P_u, and how long they communicate, B_u; both of shape (clients,)."""

    rates: Array
    communication: Array

    @classmethod
    def checked(cls, rates: npt.ArrayLike, communication_seconds: npt.ArrayLike, num_clients: int) -> "_Clients":
        speeds = np.asarray(rates, dtype=np.float64)
        if speeds.shape != (num_clients,) or not (np.isfinite(speeds) & (speeds > 0)).all():
            raise ValueError(f"rates must be {num_clients} positive numbers, one for each client")
        communication = np.asarray(communication_seconds, dtype=np.float64)
        if (
            communication.shape not in ((), speeds.shape)
            or not (np.isfinite(communication) & (communication >= 0)).all()
        ):
            raise ValueError(f"communication_seconds must be one number ≥ 0, or {num_clients}, one for each client")
        return cls(speeds, np.broadcast_to(communication, speeds.shape))

    def batches(self, layer_seconds: float, deadlines: Array) -> Array:
        """Return m P_u (T − B_u)/T, shape (deadlines, clients)."""
        shares = 1 - self.communication / deadlines[:, None]
        return np.asarray(layer_seconds * self.rates * shares, dtype=np.float64)

    def slowest(self, deadline: float) -> float:
        """Return how many examples the slowest client takes through one layer in a second of the round."""
        return float(self.batches(1.0, np.array([deadline])).min())

    def noise(self, constants: Constants, num_layers: int, layer_seconds: float, deadlines: Array) -> Array:
        """Return B + C at each deadline, shape (deadlines,), for exponential layer times of mean `layer_seconds`."""
        inverse = (1 / self.batches(layer_seconds, deadlines)).mean(axis=1)
        alike = np.unique(deadlines)  # where many rounds are as short as may be, one evaluation serves them all
        late = gammaincc(np.arange(num_layers, 0, -1), alike[:, None] / layer_seconds)
        waiting = deadline_noise(constants=constants, empty=late**constants.num_clients)
        sampling = constants.gradient_variance * inverse / constants.num_clients
        constant = 6 * constants.smoothness * constants.heterogeneity
        return np.asarray(sampling + constant + waiting[np.searchsorted(alike, deadlines)], dtype=np.float64)
