"""How fast the global model converges under deadlines: the bound of the paper's theorem, round by round.

Setting: each client's loss F_u is ρ_s-smooth and ρ_c-strongly convex; w* minimises their mean F; each client takes one
step of stochastic gradient descent a round, and layers move by the corrected mean. Rounds are t = 1 … R; `bound` starts
with the error before the first. Derivations are in docs/theory.md.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What the bound has to know of a learning problem.

    `smoothness` ρ_s and `strong_convexity` ρ_c of every client's loss; `gradient_variance`, the mean over clients of
    the bound σ_u² on E‖g_u − ∇F_u‖²; `second_moment` G² ≥ E‖g_u‖²; `heterogeneity` Γ = F(w*) − (1/U) Σ_u min F_u;
    `num_clients` U, asked in each round.
    """

    smoothness: float
    strong_convexity: float
    gradient_variance: float
    second_moment: float
    heterogeneity: float
    num_clients: int

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        wrong = [f"{name} = {value}" for name, value in values.items() if not 0 <= value < math.inf]
        if wrong:
            raise ValueError(f"constants must be finite and not negative, not {', '.join(wrong)}")
        if not 0 < self.strong_convexity <= self.smoothness:
            raise ValueError(
                f"strong_convexity must be positive and at most smoothness, "
                f"not {self.strong_convexity} with smoothness {self.smoothness}"
            )
        if self.num_clients < 1:
            raise ValueError(f"num_clients is {self.num_clients}, but at least one client must be asked")

    @property
    def shift(self) -> float:
        """γ = max(8 ρ_s/ρ_c, 1), which keeps the first steps short."""
        return max(8 * self.smoothness / self.strong_convexity, 1.0)

    @property
    def sampling_noise(self) -> float:
        """B = (1/U²) Σ_u σ_u² + 6 ρ_s Γ: what a round without a deadline adds to the error, per squared step size."""
        return self.gradient_variance / self.num_clients + 6 * self.smoothness * self.heterogeneity


def decaying_steps(*, constants: Constants, rounds: int, scale: float = 2.0) -> Array:
    """Return the step sizes η_t = scale/(ρ_c (t + γ)), t = 1 … rounds.

    The scale 2 gives the rate O(1/t); 1 is that of the authors' code for ADEL-FL.

    >>> constants = Constants(
    ...     smoothness=2, strong_convexity=1, gradient_variance=1, second_moment=1, heterogeneity=0, num_clients=10
    ... )
    >>> decaying_steps(constants=constants, rounds=3).round(4)
    array([0.1176, 0.1111, 0.1053])
    """
    if rounds < 1 or not 0 < scale <= 8:
        raise ValueError(f"rounds must be at least 1 and scale between 0 and 8, not {rounds} and {scale}")
    places = np.arange(1, rounds + 1) + constants.shift
    return np.asarray(scale / (constants.strong_convexity * places), dtype=np.float64)


def deadline_noise(*, constants: Constants, empty: npt.ArrayLike) -> Array:
    """Return C_t = 4 G² U/(U−1) Σ_l (1 + p_l)/(1 − p_l), what a deadline adds to the error per squared step size.

    `empty` holds p_l, shape (…, layers); the result has the shape without the layers. Infinite where a layer is never
    conveyed. One client alone has no others to differ from; U/(U−1) is then taken as 1.

    >>> constants = Constants(
    ...     smoothness=2, strong_convexity=1, gradient_variance=1, second_moment=0.5, heterogeneity=0, num_clients=2
    ... )
    >>> deadline_noise(constants=constants, empty=[[0.5, 0.0], [1.0, 0.0]])
    array([16., inf])
    """
    chances = np.asarray(empty, dtype=np.float64)
    if chances.ndim < 1 or not ((chances >= 0) & (chances <= 1)).all():
        raise ValueError("empty must hold probabilities between 0 and 1, shape (…, layers)")
    clients = constants.num_clients
    with np.errstate(divide="ignore"):
        layers = ((1 + chances) / (1 - chances)).sum(axis=-1)
    return np.asarray(4 * constants.second_moment * clients / max(clients - 1, 1) * layers, dtype=np.float64)


def variance_noise(*, constants: Constants, factor: npt.ArrayLike, empty: npt.ArrayLike) -> float:
    """Return G² (1/L) Σ_l max(a_l, p_l/(1 − p_l)), which the exact variance of the corrected mean cannot exceed.

    `factor` holds a_l of `variance_factor`, `empty` p_l, both of shape (layers,), and every layer's gradient is taken
    to have the same share of G². Unlike `deadline_noise` it falls as more clients contribute.

    >>> constants = Constants(
    ...     smoothness=2, strong_convexity=1, gradient_variance=1, second_moment=0.5, heterogeneity=0, num_clients=2
    ... )
    >>> variance_noise(constants=constants, factor=[0.9, 0.0], empty=[0.25, 0.0])
    0.225
    """
    spread, chances = np.asarray(factor, dtype=np.float64), np.asarray(empty, dtype=np.float64)
    if spread.shape != chances.shape or spread.ndim != 1 or not ((chances >= 0) & (chances <= 1)).all():
        raise ValueError("factor and empty must have shape (layers,), and empty hold probabilities")
    with np.errstate(divide="ignore"):
        return constants.second_moment * float(np.maximum(spread, chances / (1 - chances)).mean())


def bound(
    *,
    constants: Constants,
    initial_error: float,
    rounds: int,
    empty: npt.ArrayLike | None = None,
    step_sizes: npt.ArrayLike | None = None,
) -> Array:
    """Bound E‖w_t − w*‖² before the first round and after each, shape (rounds + 1,).

    The recursion is x_{t+1} = (1 − ρ_c η_t) x_t + η_t² (B + C_t), x_1 = `initial_error` = ‖w_1 − w*‖². `empty` holds
    the p_{t,l}: shape (layers,) for a constant deadline, (rounds, layers) for one that changes, None without a deadline
    (C = 0). `step_sizes` η_t ≤ 1/ρ_s has shape (rounds,); by default 2/(ρ_c (t + γ)).

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
            raise ValueError(f"empty has {len(chances)} rows for {rounds} rounds")
        noise = noise + deadline_noise(constants=constants, empty=chances)
    if not 0 <= initial_error < math.inf:
        raise ValueError(f"initial_error must be finite and not negative, not {initial_error}")
    return recursion(decay=1 - constants.strong_convexity * steps, added=steps**2 * noise, start=initial_error)


def asymptotic_bound(
    *, constants: Constants, initial_error: float, rounds: int, empty: npt.ArrayLike | None = None
) -> Array:
    """Bound E‖w_t − w*‖² by max{4 (B + C)/ρ_c², (γ + 1) ‖w_1 − w*‖²}/(t + γ), t = 1 … rounds + 1: the rate O(1/t).

    It lies above `bound` with the default step sizes and a constant deadline, or with C the largest C_t.

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


def error_weights(*, constants: Constants, step_sizes: npt.ArrayLike) -> Array:
    """Return ω_t = η_t² Π_{r>t} (1 − ρ_c η_r), by how much the noise B + C_t of a round enters the last bound.

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


def recursion(*, decay: npt.ArrayLike, added: npt.ArrayLike, start: float) -> Array:
    """Return x_1 = start and x_{t+1} = decay_t x_t + added_t, shape (rounds + 1,), without a loop over rounds.

    Each round is the map x → decay·x + added. Composing neighbours, then neighbours of neighbours, gives all partial
    compositions in log₂ R sweeps, with no division and hence no underflow (Hillis and Steele, 1986).

    >>> recursion(decay=[0.5, 0.5], added=[1.0, 0.0], start=2.0)
    array([2., 2., 1.])
    """
    grad_output, offset = np.array(decay, dtype=np.float64), np.array(added, dtype=np.float64)
    lost = np.logical_or.accumulate(np.isinf(offset))  # from a round of infinite noise on, nothing is known
    offset[lost] = 0.0
    reach = 1
    while reach < len(grad_output):
        offset[reach:] = grad_output[reach:] * offset[:-reach] + offset[reach:]
        grad_output[reach:] = grad_output[reach:] * grad_output[:-reach]
        reach *= 2
    return np.append(start, np.where(lost, np.inf, grad_output * start + offset))


def _checked_steps(constants: Constants, rounds: int, step_sizes: npt.ArrayLike | None) -> Array:
    """Return the step sizes, the default ones if None; raises `ValueError` where the recursion does not hold."""
    if step_sizes is None:
        return decaying_steps(constants=constants, rounds=rounds)
    steps = np.asarray(step_sizes, dtype=np.float64)
    if rounds < 1 or steps.shape != (rounds,):
        raise ValueError(f"step_sizes has shape {steps.shape}, not ({rounds},): one for each of at least one round")
    if not ((steps > 0) & (steps <= 1 / constants.smoothness)).all():
        raise ValueError(f"step_sizes must be positive and at most 1/smoothness = {1 / constants.smoothness:g}")
    return steps
