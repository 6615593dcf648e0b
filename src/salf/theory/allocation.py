"""The best division of a time budget among rounds: a separable convex problem."""

import numpy as np
import numpy.typing as npt
import scipy

from salf.errors import InvalidSetting
from salf.values import Floats

_SMALLEST_WEIGHT = 1e-200  # relative to the largest; rounds below it do not count


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
