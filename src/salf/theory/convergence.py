"""The bound on the global model's error under deadlines, round by round.

Each client's loss F_u is ρ_s-smooth and ρ_c-strongly convex, and w* minimises their mean F. Each client takes one step
of stochastic gradient descent per round, and layers move by the corrected mean. Rounds are t = 1 … R; `bound` starts
with the error before the first. Derivations are in docs/theory.md.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from salf.errors import InvalidSetting, check_count, check_non_negative
from salf.theory.depths import as_probabilities
from salf.values import Floats


@dataclass(frozen=True, kw_only=True)
class Constants:
    """The constants of a learning problem that enter the bound (docs/theory.md).

    Attributes:
        smoothness: ρ_s of every client's loss.
        strong_convexity: ρ_c of every client's loss, greater than 0 and at most ρ_s.
        gradient_variance: Mean over clients of σ_u² ≥ E‖g_u − ∇F_u‖².
        second_moment: G² ≥ E‖g_u‖².
        heterogeneity: Γ = F(w*) − (1/U) Σ_u min F_u.
        num_clients: U, the clients in each round.

    >>> constants = Constants(
    ...     smoothness=2, strong_convexity=1, gradient_variance=1, second_moment=1, heterogeneity=0, num_clients=10
    ... )
    >>> constants.shift, constants.sampling_noise
    (16.0, 0.1)
    """

    smoothness: float
    strong_convexity: float
    gradient_variance: float
    second_moment: float
    heterogeneity: float
    num_clients: int

    def __post_init__(self) -> None:
        for field in fields(self):
            check_non_negative(field.name, getattr(self, field.name))
        if not 0 < self.strong_convexity <= self.smoothness:
            raise InvalidSetting(
                f"strong_convexity is {self.strong_convexity}; choose a number greater than 0 and at most "
                f"smoothness = {self.smoothness}"
            )
        check_count("num_clients", self.num_clients)

    @property
    def shift(self) -> float:
        """γ = max(8 ρ_s/ρ_c, 1), which keeps the first steps short."""
        return max(8 * self.smoothness / self.strong_convexity, 1.0)

    @property
    def sampling_noise(self) -> float:
        """B = (1/U²) Σ_u σ_u² + 6 ρ_s Γ: noise of a round without a deadline."""
        return self.gradient_variance / self.num_clients + 6 * self.smoothness * self.heterogeneity


def decaying_steps(*, constants: Constants, rounds: int, scale: float = 2.0) -> Floats:
    """Return the step sizes η_t = scale/(ρ_c (t + γ)), t = 1 … rounds.

    Args:
        constants: The learning problem.
        rounds: At least 1.
        scale: Above 0 and at most 8. 2 gives the rate O(1/t); the authors' code for ADEL-FL uses 1.

    >>> constants = Constants(
    ...     smoothness=2, strong_convexity=1, gradient_variance=1, second_moment=1, heterogeneity=0, num_clients=10
    ... )
    >>> decaying_steps(constants=constants, rounds=3).round(4)
    array([0.1176, 0.1111, 0.1053])
    """
    check_count("rounds", rounds)
    if not 0 < scale <= 8:
        raise InvalidSetting(f"scale is {scale}; choose a number greater than 0 and at most 8")
    places = np.arange(1, rounds + 1) + constants.shift
    return np.asarray(scale / (constants.strong_convexity * places), dtype=np.float64)


def deadline_noise(*, constants: Constants, empty: npt.ArrayLike) -> Floats:
    """Return C_t, what a deadline adds to the error per squared step size.

    C_t = 4 G² U/(U−1) Σ_l (1 + p_l)/(1 − p_l), as in the authors' code for ADEL-FL and derived in docs/theory.md. It is
    infinite if no client ever reaches a layer. For U = 1, U/(U−1) is taken as 1.

    Args:
        constants: The learning problem.
        empty: p_l, shape (…, layers); the result has shape (…).

    >>> constants = Constants(
    ...     smoothness=2, strong_convexity=1, gradient_variance=1, second_moment=0.5, heterogeneity=0, num_clients=2
    ... )
    >>> deadline_noise(constants=constants, empty=[[0.5, 0.0], [1.0, 0.0]])
    array([16., inf])
    """
    chances = as_probabilities("empty", empty)
    if chances.ndim < 1:
        raise InvalidSetting("empty is one number; give an array of shape (…, layers)")
    clients = constants.num_clients
    with np.errstate(divide="ignore"):
        layers = ((1 + chances) / (1 - chances)).sum(axis=-1)
    return np.asarray(4 * constants.second_moment * clients / max(clients - 1, 1) * layers, dtype=np.float64)


def variance_noise(*, constants: Constants, factor: npt.ArrayLike, empty: npt.ArrayLike) -> float:
    """Return G² (1/L) Σ_l max(a_l, p_l/(1 − p_l)), a bound on the exact variance.

    Every layer's gradient is taken to have the same share of G². Unlike `deadline_noise`, it falls as more clients
    contribute. Derived in docs/theory.md.

    Args:
        constants: The learning problem.
        factor: a_l of `variance_factor`, shape (layers,).
        empty: p_l, shape (layers,).

    >>> constants = Constants(
    ...     smoothness=2, strong_convexity=1, gradient_variance=1, second_moment=0.5, heterogeneity=0, num_clients=2
    ... )
    >>> variance_noise(constants=constants, factor=[0.9, 0.0], empty=[0.25, 0.0])
    0.225
    """
    spread, chances = np.asarray(factor, dtype=np.float64), as_probabilities("empty", empty)
    if spread.shape != chances.shape or spread.ndim != 1:
        raise InvalidSetting(
            f"factor and empty have shapes {spread.shape} and {chances.shape}; give both the shape (layers,)"
        )
    with np.errstate(divide="ignore"):
        return constants.second_moment * float(np.maximum(spread, chances / (1 - chances)).mean())


def bound(
    *,
    constants: Constants,
    initial_error: float,
    rounds: int,
    empty: npt.ArrayLike | None = None,
    step_sizes: npt.ArrayLike | None = None,
) -> Floats:
    """Bound E‖w_t − w*‖² before the first round and after each, shape (rounds + 1,).

    The recursion is x_{t+1} = (1 − ρ_c η_t) x_t + η_t² (B + C_t) with x_1 = ‖w_1 − w*‖² (docs/theory.md).

    Args:
        constants: The learning problem.
        initial_error: x_1, finite and at least 0.
        rounds: R, at least 1.
        empty: p_{t,l} of shape (layers,) for a constant deadline, (rounds, layers) for one that changes; None if
            there is no deadline (C = 0).
        step_sizes: 0 < η_t ≤ 1/ρ_s of shape (rounds,); None: 2/(ρ_c (t + γ)).

    >>> constants = Constants(
    ...     smoothness=2, strong_convexity=1, gradient_variance=1, second_moment=1, heterogeneity=0, num_clients=10
    ... )
    >>> bound(constants=constants, initial_error=1.0, rounds=3, empty=[0.3, 0.0]).round(4)
    array([1.    , 1.0595, 1.0998, 1.1258])
    >>> bound(constants=constants, initial_error=1.0, rounds=3).round(4)
    array([1.    , 0.8837, 0.7868, 0.7051])
    """
    steps = _checked_steps(constants, rounds, step_sizes)
    noise = np.full(rounds, constants.sampling_noise)
    if empty is not None:
        chances = np.asarray(empty, dtype=np.float64)
        if chances.ndim == 2 and len(chances) != rounds:
            raise InvalidSetting(f"empty has {len(chances)} rows for {rounds} rounds; give one row per round")
        noise = noise + deadline_noise(constants=constants, empty=chances)
    check_non_negative("initial_error", initial_error)
    return recursion(decay=1 - constants.strong_convexity * steps, added=steps**2 * noise, start=initial_error)


def asymptotic_bound(
    *, constants: Constants, initial_error: float, rounds: int, empty: npt.ArrayLike | None = None
) -> Floats:
    """Bound E‖w_t − w*‖² in closed form, t = 1 … rounds + 1: the rate O(1/t).

    The bound is max{4 (B + C)/ρ_c², (γ + 1) ‖w_1 − w*‖²}/(t + γ), with C the largest C_t. It lies above `bound` with
    the default step sizes (docs/theory.md). Arguments are those of `bound`.

    >>> constants = Constants(
    ...     smoothness=2, strong_convexity=1, gradient_variance=1, second_moment=1, heterogeneity=0, num_clients=10
    ... )
    >>> asymptotic_bound(constants=constants, initial_error=1.0, rounds=3).round(4)
    array([1.    , 0.9444, 0.8947, 0.85  ])
    """
    noise = constants.sampling_noise
    if empty is not None:
        noise += float(deadline_noise(constants=constants, empty=empty).max())
    numerator = max(4 * noise / constants.strong_convexity**2, (constants.shift + 1) * initial_error)
    return np.asarray(numerator / (np.arange(1, rounds + 2) + constants.shift), dtype=np.float64)


def error_weights(*, constants: Constants, step_sizes: npt.ArrayLike) -> Floats:
    """Return the weight ω_t of each round's noise B + C_t in the last bound.

    ω_t = η_t² Π_{r>t} (1 − ρ_c η_r).

    Args:
        constants: The learning problem.
        step_sizes: 0 < η_t ≤ 1/ρ_s, shape (rounds,), which is also the shape of the result.

    >>> constants = Constants(
    ...     smoothness=2, strong_convexity=1, gradient_variance=1, second_moment=1, heterogeneity=0, num_clients=10
    ... )
    >>> error_weights(constants=constants, step_sizes=[0.5, 0.5])
    array([0.125, 0.25 ])
    """
    sizes = np.asarray(step_sizes, dtype=np.float64)
    steps = _checked_steps(constants, len(sizes), sizes)
    decay = 1 - constants.strong_convexity * steps
    later = np.append(np.cumprod(decay[:0:-1])[::-1], 1.0)
    return np.asarray(steps**2 * later, dtype=np.float64)


def recursion(*, decay: npt.ArrayLike, added: npt.ArrayLike, start: float) -> Floats:
    """Return x_1 = start and x_{t+1} = decay_t x_t + added_t, shape (rounds + 1,).

    Each round is the map x → decay·x + added. Composing neighbours, then neighbours of neighbours, gives all partial
    compositions in log₂ R sweeps, without division and hence without underflow (Hillis and Steele, 1986).

    Args:
        decay: Shape (rounds,).
        added: Shape (rounds,); from an infinite value on, the result is infinite.
        start: x_1.

    >>> recursion(decay=[0.5, 0.5], added=[1.0, 0.0], start=2.0)
    array([2., 2., 1.])
    """
    slope, offset = np.array(decay, dtype=np.float64), np.array(added, dtype=np.float64)
    unbounded = np.logical_or.accumulate(np.isinf(offset))
    offset[unbounded] = 0.0
    reach = 1
    while reach < len(slope):
        offset[reach:] = slope[reach:] * offset[:-reach] + offset[reach:]
        slope[reach:] = slope[reach:] * slope[:-reach]
        reach *= 2
    return np.append(start, np.where(unbounded, np.inf, slope * start + offset))


def _checked_steps(constants: Constants, rounds: int, step_sizes: npt.ArrayLike | None) -> Floats:
    """Return the step sizes, or the default ones, for which the recursion holds."""
    if step_sizes is None:
        return decaying_steps(constants=constants, rounds=rounds)
    check_count("rounds", rounds)
    steps = np.asarray(step_sizes, dtype=np.float64)
    if steps.shape != (rounds,):
        raise InvalidSetting(f"step_sizes has shape {steps.shape}; give shape ({rounds},), one step size per round")
    if not ((steps > 0) & (steps <= 1 / constants.smoothness)).all():
        raise InvalidSetting(
            "step_sizes do not fit the recursion; choose numbers greater than 0 and at most "
            f"1/smoothness = {1 / constants.smoothness:g}"
        )
    return steps
