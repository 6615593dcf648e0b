"""Variance of a layer's step over random sets of contributors, and their shares.

K is the number of a layer's contributors among the U clients of the round. Expectations of 1/K are integrals of its
generating function E x^K, because 1/k = ∫₀¹ x^(k−1) dx. Gauss–Legendre quadrature is exact for these polynomials up to
127 clients, and to rounding beyond.
"""

import numpy as np
import numpy.typing as npt
import scipy

from salf.errors import InvalidSetting
from salf.theory.depths import as_probabilities
from salf.values import Floats

_MOST_NODES = 64


def estimator_variance(*, gradients: npt.ArrayLike, reach: npt.ArrayLike) -> float:
    """Return the exact variance E‖X − E X‖² of the corrected mean X of one layer.

    X = 1/(1−p) · (1/|S|) Σ_{u∈S} g_u over the random set S of clients that reach the layer, 0 if there is none. For one
    probability q (derived in docs/theory.md; K ~ Binomial(U, q), p = (1−q)^U, σ² = mean ‖g_u − ḡ‖²):

        σ²/(1−p)² · Σ_{k≥1} P(K=k)·(U−k)/(k(U−1))  +  ‖ḡ‖²·p/(1−p)

    Args:
        gradients: g_u, shape (clients, parameters).
        reach: One probability for all clients, or shape (clients,); at least one greater than 0.

    >>> round(estimator_variance(gradients=[[1.0], [3.0]], reach=0.5), 6)
    2.222222
    """
    vectors, chances = np.asarray(gradients, dtype=np.float64), as_probabilities("reach", reach)
    if vectors.ndim != 2 or vectors.shape[0] < 1:
        raise InvalidSetting(f"gradients has shape {vectors.shape}; give shape (clients, parameters)")
    if chances.ndim > 1 or (chances.ndim == 1 and chances.shape[0] != vectors.shape[0]):
        raise InvalidSetting(f"reach has shape {chances.shape}; give one probability or one per client")
    if not chances.max() > 0:
        raise InvalidSetting("reach is 0 for every client; give at least one a greater probability")
    return _variance_alike(vectors, float(chances)) if chances.ndim == 0 else _variance_unlike(vectors, chances)


def _variance_alike(vectors: Floats, chance: float) -> float:
    """Compute the closed form for one probability, in logarithms against overflow."""
    clients = vectors.shape[0]
    mean = vectors.mean(axis=0)
    spread = float(((vectors - mean) ** 2).sum(axis=1).mean())
    someone = float(_any(np.array([[chance]]), clients)[0])
    counts = np.arange(1, clients + 1)
    special = scipy.special
    choices = special.gammaln(clients + 1) - special.gammaln(counts + 1) - special.gammaln(clients - counts + 1)
    exactly = np.exp(choices + special.xlogy(counts, chance) + special.xlog1py(clients - counts, -chance))
    shares = exactly * (clients - counts) / (counts * max(clients - 1, 1))
    between: float = spread * float(shares.sum()) / someone / someone
    return between + float(mean @ mean) * float((1 - chance) ** clients) / someone


def _variance_unlike(vectors: Floats, chances: Floats) -> float:
    """Sum over pairs of clients, for probabilities that differ.

    E[1{u,v ∈ S}/|S|²] follows from 1/k² = ∫∫ (xy)^(k−1) dx dy, which Gauss quadrature gives exactly.
    """
    clients = vectors.shape[0]
    nodes, weights = np.polynomial.legendre.leggauss(clients // 2 + 1)
    nodes, weights = (nodes + 1) / 2, weights / 2
    someone = float(_any(chances[:, None], clients)[0])

    def others(point: Floats) -> tuple[Floats, Floats]:
        """Return the generating function of |S|, and π_u over client u's factor."""
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


def variance_factor(*, reach: npt.ArrayLike, num_clients: int | None = None) -> Floats:
    """Return a_l, by which the clients' differences σ_l² enter the variance of a step.

    The shape is (layers,). With K contributors of U and p = P(K = 0), a_l = Σ_{k≥1} P(K=k)·(U−k)/(k(U−1)) / (1−p)²:
    the first factor of `estimator_variance`. It is 0 if every client contributes, 1 for one random contributor, and
    infinite if no client ever contributes. If reach differs between clients, it is the mean over all assignments of
    data to clients.

    Args:
        reach: Probabilities of shape (clients, layers), or (layers,) if they are the same for all clients.
        num_clients: U, at least 1; required for shape (layers,).

    >>> variance_factor(reach=[0.0, 0.5, 1.0], num_clients=2)
    array([       inf, 0.88888889, 0.        ])
    """
    chances, clients = _per_client(reach, num_clients)
    if clients == 1:
        return np.where(_any(chances, clients) > 0, 0.0, np.inf)
    nodes, weights = _nodes(clients)
    someone = _any(chances, clients)
    generating = _generating(chances, nodes, clients)
    empty = (1 - someone)[None, :]
    inverse = weights @ ((generating - empty) / nodes[:, None])  # E[1/K; K ≥ 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = (clients * inverse - someone) / (clients - 1) / someone**2
    return np.where(someone > 0, np.maximum(factor, 0.0), np.inf)


def participation(*, reach: npt.ArrayLike) -> Floats:
    """Return the mean share ν_{u,l} of each client in a layer's corrected step.

    The shape is (clients, layers):
    ν_{u,l} = E[1{u ∈ U_l} / |U_l|] / (1 − p_l) for independent clients with `reach` of the same shape. The shares of a
    layer add up to 1. If depths are exchangeable, they are all 1/U and the step is unbiased. They are 0 in a layer that
    no client ever reaches.

    >>> participation(reach=[[0.5], [1.0]])
    array([[0.25],
           [0.75]])
    """
    chances = as_probabilities("reach", reach)
    if chances.ndim != 2:
        raise InvalidSetting(f"reach has shape {chances.shape}; give shape (clients, layers)")
    nodes, weights = _nodes(len(chances))
    factors = 1 - chances + chances * nodes[:, None, None]
    whole = factors.prod(axis=1, keepdims=True)
    once = np.tensordot(weights, whole * chances / factors, axes=1)
    someone = _any(chances, len(chances))
    return np.where(someone > 0, once / np.where(someone > 0, someone, 1.0), 0.0)


def imbalance(*, reach: npt.ArrayLike) -> Floats:
    """Return χ²_l, how unequally clients take part in each layer's step.

    χ²_l = U Σ_u (ν_{u,l} − 1/U)², shape (layers,):
    0 if every client has the same mean share, U − 1 if a single client moves the layer. The bias of the corrected step
    is at most σ_l χ_l (Cauchy–Schwarz; docs/theory.md). `reach` has shape (clients, layers).

    >>> imbalance(reach=[[0.5, 1.0], [1.0, 1.0]]).round(6)
    array([0.25, 0.  ])
    """
    shares = participation(reach=reach)
    clients = len(shares)
    chi = clients * ((shares - 1 / clients) ** 2).sum(axis=0)
    return np.where(shares.any(axis=0), chi, clients - 1.0)


def _per_client(reach: npt.ArrayLike, num_clients: int | None) -> tuple[Floats, int]:
    """Return probabilities of shape (1 or clients, layers), and the number of clients."""
    chances = as_probabilities("reach", reach)
    if chances.ndim == 2 and num_clients in (None, len(chances)):
        return chances, len(chances)
    if chances.ndim == 1 and num_clients is not None and num_clients >= 1:
        return chances[None, :], num_clients
    raise InvalidSetting(
        f"reach has shape {chances.shape} with num_clients = {num_clients}; give shape (clients, layers), or (layers,) "
        "with num_clients of at least 1"
    )


def _nodes(clients: int) -> tuple[Floats, Floats]:
    """Return the points and weights of Gauss–Legendre quadrature between 0 and 1."""
    nodes, weights = np.polynomial.legendre.leggauss(min(clients // 2 + 1, _MOST_NODES))
    return (nodes + 1) / 2, weights / 2


def _generating(chances: Floats, points: Floats, clients: int) -> Floats:
    """Return E x^K at each point, shape (points, layers)."""
    factors = 1 - chances + chances * points[:, None, None]
    return np.asarray(factors[:, 0] ** clients if len(chances) == 1 else factors.prod(axis=1), dtype=np.float64)


def _any(chances: Floats, clients: int) -> Floats:
    """Return P(K ≥ 1) of each layer, exact to rounding also where it is tiny."""
    repeated = clients if len(chances) == 1 else 1
    with np.errstate(divide="ignore"):  # log 0, of a client that always reaches the layer
        return np.asarray(-np.expm1(repeated * np.log1p(-chances).sum(axis=0)), dtype=np.float64)
