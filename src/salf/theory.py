"""The mathematics of layer-wise updates under a deadline, as pure functions of numbers.

Layers are numbered l = 1 … L from input to output; a client of depth d has completed the d layers nearest the output,
so it reaches layer l when d ≥ L − l + 1. Arrays over layers run from input to output.

Source of the setting: "Stragglers-Aware Low-Latency Synchronous Federated Learning via Layer-Wise Model Updates"
(arXiv 2403.18375), called "the paper".
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from scipy.special import gammainc
from scipy.stats import binom

Array = npt.NDArray[np.float64]


@runtime_checkable
class DepthDistribution(Protocol):
    """How deep one client gets in one round, as a probability."""

    def at_least(self, num_layers: int) -> Array:
        """Return P(depth ≥ d) for d = 1 … num_layers."""
        ...


@dataclass(frozen=True)
class UniformDepth:
    """Depth uniform on {lowest … L}: the model of the paper's experiments (lowest = 1)."""

    lowest: int = 1

    def at_least(self, num_layers: int) -> Array:
        """Return P(depth ≥ d) for d = 1 … num_layers."""
        if not 0 <= self.lowest <= num_layers:
            raise ValueError(f"lowest depth {self.lowest} is not between 0 and the {num_layers} layers")
        depths = np.arange(1, num_layers + 1)
        return np.minimum(1.0, (num_layers - depths + 1) / (num_layers - self.lowest + 1))


@dataclass(frozen=True)
class ExponentialDepth:
    """Depth at a deadline when each layer takes an independent exponential time (the paper's analysis).

    Forward passes take no time here. The number of layers completed by time T is then a Poisson variable cut off at L.
    """

    mean_layer_seconds: float
    deadline_seconds: float

    def at_least(self, num_layers: int) -> Array:
        """Return P(depth ≥ d) for d = 1 … num_layers: the d-th completion is Erlang-distributed."""
        if not (0 < self.mean_layer_seconds < math.inf and self.deadline_seconds >= 0):
            raise ValueError(
                f"mean_layer_seconds must be positive and deadline_seconds not negative, "
                f"not {self.mean_layer_seconds} and {self.deadline_seconds}"
            )
        depths = np.arange(1, num_layers + 1)
        return np.asarray(gammainc(depths, self.deadline_seconds / self.mean_layer_seconds), dtype=np.float64)


@dataclass(frozen=True)
class EmpiricalDepth:
    """The depths that were counted: `counts[d]` clients got exactly d layers deep, d = 0 … L."""

    counts: tuple[float, ...]

    def at_least(self, num_layers: int) -> Array:
        """Return P(depth ≥ d) for d = 1 … num_layers."""
        counts = np.asarray(self.counts, dtype=np.float64)
        if counts.shape != (num_layers + 1,) or not (np.isfinite(counts) & (counts >= 0)).all() or not counts.any():
            raise ValueError(
                f"counts must be {num_layers + 1} numbers ≥ 0 (depths 0 … {num_layers}) that are not all 0"
            )
        return np.asarray(counts[::-1].cumsum()[::-1][1:] / counts.sum(), dtype=np.float64)


def reach_probability(*, depth: DepthDistribution, num_layers: int) -> Array:
    """Return the probability that a client reaches each layer, shape (num_layers,), input to output.

    >>> reach_probability(depth=UniformDepth(), num_layers=4)
    array([0.25, 0.5 , 0.75, 1.  ])
    >>> reach_probability(depth=ExponentialDepth(1.0, 2.0), num_layers=2).round(4)   # 1 − 3e⁻², 1 − e⁻²
    array([0.594 , 0.8647])
    """
    if num_layers < 1:
        raise ValueError(f"num_layers is {num_layers}, but a model has at least one layer")
    return depth.at_least(num_layers)[::-1].copy()


def empty_probability(*, reach: npt.ArrayLike, num_clients: int | None = None, min_contributors: int = 1) -> Array:
    """Return p_l = P(fewer than `min_contributors` clients reach layer l), shape (layers,).

    `reach` has shape (layers,), the same for each of `num_clients` independent clients, or (clients, layers). With
    `min_contributors` = 1 this is the paper's p_l = P(U_l = ∅).

    >>> empty_probability(reach=[0.25, 1.0], num_clients=2)
    array([0.5625, 0.    ])
    >>> empty_probability(reach=[[0.25, 1.0], [0.5, 1.0]])
    array([0.375, 0.   ])
    """
    chances = np.asarray(reach, dtype=np.float64)
    if not (np.isfinite(chances).all() and (chances >= 0).all() and (chances <= 1).all()):
        raise ValueError("reach probabilities must lie between 0 and 1")
    if chances.ndim not in (1, 2):
        raise ValueError(f"reach must have shape (layers,) or (clients, layers), not {chances.shape}")
    if min_contributors < 1:
        raise ValueError(f"min_contributors is {min_contributors}, but must be at least 1")
    if chances.ndim == 1:
        if num_clients is None or num_clients < 0:
            raise ValueError("num_clients, at least 0, is needed when reach is the same for every client")
        return np.asarray(binom.cdf(min_contributors - 1, num_clients, chances), dtype=np.float64)
    if num_clients not in (None, len(chances)):
        raise ValueError(f"reach has {len(chances)} rows for {num_clients} clients")
    chances = np.sort(chances, axis=0)  # so that not even rounding depends on the order of the clients
    if min_contributors == 1:
        return np.asarray((1 - chances).prod(axis=0), dtype=np.float64)
    # Poisson-binomial: carry the chances of 0, 1, … contributors so far, up to the first count that is enough.
    so_far = np.zeros((min_contributors, chances.shape[1]))
    so_far[0] = 1.0
    for client in chances:
        arrived = np.vstack([np.zeros_like(client), so_far[:-1]])
        so_far = so_far * (1 - client) + arrived * client
    return np.asarray(so_far.sum(axis=0), dtype=np.float64)


def estimator_variance(*, gradients: npt.ArrayLike, reach: npt.ArrayLike) -> float:
    """Return the exact variance E‖X − E X‖² of the corrected mean X of one layer.

    X = 1/(1−p) · (1/|S|) Σ_{u∈S} g_u over the random set S of clients that reach the layer, 0 if there is none;
    `gradients` has shape (clients, parameters); `reach` is one probability for all clients or one per client. For one
    probability q (derived in docs/theory.md; K ~ Binomial(U, q), p = (1−q)^U, σ² = mean ‖g_u − ḡ‖²):

        σ²/(1−p)² · Σ_{k≥1} P(K=k)·(U−k)/(k(U−1))  +  ‖ḡ‖²·p/(1−p)

    >>> round(estimator_variance(gradients=[[1.0], [3.0]], reach=0.5), 6)
    2.222222
    >>> round(estimator_variance(gradients=[[1.0], [3.0]], reach=[0.5, 0.5]), 6)
    2.222222
    """
    vectors = np.asarray(gradients, dtype=np.float64)
    chances = np.asarray(reach, dtype=np.float64)
    if vectors.ndim != 2 or vectors.shape[0] < 1:
        raise ValueError("gradients must have shape (clients, parameters)")
    if chances.ndim > 1 or (chances.ndim == 1 and chances.shape[0] != vectors.shape[0]):
        raise ValueError("reach must be one probability or one per client")
    if not ((chances >= 0).all() and (chances <= 1).all() and chances.max() > 0):
        raise ValueError("reach must lie between 0 and 1, and someone must reach the layer")
    return _variance_alike(vectors, float(chances)) if chances.ndim == 0 else _variance_unlike(vectors, chances)


def _variance_alike(vectors: Array, chance: float) -> float:
    clients = vectors.shape[0]
    mean = vectors.mean(axis=0)
    spread = float(((vectors - mean) ** 2).sum(axis=1).mean())
    someone = _someone(np.full(clients, chance))
    counts = np.arange(1, clients + 1)
    shares = binom.pmf(counts, clients, chance) * (clients - counts) / (counts * max(clients - 1, 1))
    between: float = spread * float(shares.sum()) / someone / someone
    return between + float(mean @ mean) * float((1 - chance) ** clients) / someone


def _variance_unlike(vectors: Array, chances: Array) -> float:
    """Sum over pairs of clients, with E[1{u,v ∈ S}/|S|²] from 1/k² = ∫∫ (xy)^(k−1) dx dy, exact by Gauss quadrature."""
    clients = vectors.shape[0]
    nodes, weights = np.polynomial.legendre.leggauss(clients // 2 + 1)
    nodes, weights = (nodes + 1) / 2, weights / 2
    someone = _someone(chances)

    def others(point: Array) -> tuple[Array, Array]:
        """Return the generating function of |S| at each point, and π_u over the factor of client u."""
        factors = 1 - chances + chances * point[:, None]
        return factors.prod(axis=1), chances / factors

    whole, single = others(nodes)
    once = (weights * whole) @ single  # E[1{u ∈ S}/|S|]
    product = np.multiply.outer(nodes, nodes).ravel()
    whole, single = others(product)
    area = np.multiply.outer(weights, weights).ravel() * whole
    twice = single.T @ ((area * product)[:, None] * single)  # E[1{u,v ∈ S}/|S|²], u ≠ v
    np.fill_diagonal(twice, area @ single)
    inner = vectors @ vectors.T
    mean = once @ vectors
    return max(float((twice * inner).sum() - mean @ mean), 0.0) / someone / someone


def _someone(chances: Array) -> float:
    """Return 1 − Π(1 − π_u), exact to rounding also where every π_u is tiny."""
    with np.errstate(divide="ignore"):  # log 0, where a client never fails
        return float(-np.expm1(np.log1p(-chances).sum()))
