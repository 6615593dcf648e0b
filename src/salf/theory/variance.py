"""How much the set of contributors varies a layer's step, and whose data it favours.

K is the number of a layer's contributors among the U clients that are asked. Expectations of 1/K are integrals of its
generating function E x^K, because 1/k = ∫₀¹ x^(k−1) dx; Gauss–Legendre quadrature is exact for the polynomials that
arise, up to 127 clients, and to rounding beyond.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, xlog1py, xlogy

Array = npt.NDArray[np.float64]
_MOST_NODES = 64


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
    someone = float(_any(np.array([[chance]]), clients)[0])
    counts = np.arange(1, clients + 1)
    choices = gammaln(clients + 1) - gammaln(counts + 1) - gammaln(clients - counts + 1)
    exactly = np.exp(choices + xlogy(counts, chance) + xlog1py(clients - counts, -chance))
    shares = exactly * (clients - counts) / (counts * max(clients - 1, 1))
    between: float = spread * float(shares.sum()) / someone / someone
    return between + float(mean @ mean) * float((1 - chance) ** clients) / someone


def _variance_unlike(vectors: Array, chances: Array) -> float:
    """Sum over pairs of clients, with E[1{u,v ∈ S}/|S|²] from 1/k² = ∫∫ (xy)^(k−1) dx dy, exact by Gauss quadrature."""
    clients = vectors.shape[0]
    nodes, weights = np.polynomial.legendre.leggauss(clients // 2 + 1)
    nodes, weights = (nodes + 1) / 2, weights / 2
    someone = float(_any(chances[:, None], clients)[0])

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


def variance_factor(*, reach: npt.ArrayLike, num_clients: int | None = None) -> Array:
    """Return by how much the clients' differences enter each layer's step, shape (layers,): the factor of σ_l².

    With K contributors of U and p = P(K = 0), it is Σ_{k≥1} P(K=k)·(U−k)/(k(U−1)) / (1−p)², the first factor in the
    variance of `estimator_variance`: 0 when everyone contributes, 1 with one random client, infinite where nobody
    ever does. `reach` has shape (clients, layers), or (layers,) for `num_clients` alike; where it differs between
    clients the factor holds on average over which of them hold which data.

    >>> variance_factor(reach=[0.0, 0.5, 1.0], num_clients=2)
    array([       inf, 0.88888889, 0.        ])
    """
    chances, clients = _per_client(reach, num_clients)
    if clients == 1:
        return np.where(_any(chances, clients) > 0, 0.0, np.inf)
    nodes, weights = _nodes(clients)
    someone = _any(chances, clients)
    generating = _generating(chances, nodes, clients)
    nobody = (1 - someone)[None, :]
    inverse = weights @ ((generating - nobody) / nodes[:, None])  # E[1/K; K ≥ 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = (clients * inverse - someone) / (clients - 1) / someone**2
    return np.where(someone > 0, np.maximum(factor, 0.0), np.inf)


def participation(*, reach: npt.ArrayLike) -> Array:
    """Return the share ν_{u,l} that each client has in a layer's corrected step on average, shape (clients, layers).

    ν_{u,l} = E[1{u ∈ U_l} / |U_l|] / (1 − p_l), for `reach` of the same shape and independent clients. The shares of a
    layer add up to 1; they are all 1/U when depths are exchangeable, and the step is then unbiased. Where nobody ever
    reaches a layer they are 0.

    >>> participation(reach=[[0.5], [1.0]])
    array([[0.25],
           [0.75]])
    """
    chances = np.asarray(reach, dtype=np.float64)
    if chances.ndim != 2:
        raise ValueError(f"reach must have shape (clients, layers), not {chances.shape}")
    nodes, weights = _nodes(len(chances))
    factors = 1 - chances + chances * nodes[:, None, None]
    whole = factors.prod(axis=1, keepdims=True)
    once = np.tensordot(weights, whole * chances / factors, axes=1)
    someone = _any(chances, len(chances))
    return np.where(someone > 0, once / np.where(someone > 0, someone, 1.0), 0.0)


def imbalance(*, reach: npt.ArrayLike) -> Array:
    """Return how unequally clients take part in each layer's step, shape (layers,): χ²_l = U Σ_u (ν_{u,l} − 1/U)².

    0 when every client has the same share on average, U − 1 when one client alone moves the layer. The bias of the
    corrected step is at most σ_l χ_l (Cauchy–Schwarz; docs/theory.md). `reach` has shape (clients, layers).

    >>> imbalance(reach=[[0.5, 1.0], [1.0, 1.0]]).round(6)
    array([0.25, 0.  ])
    """
    shares = participation(reach=reach)
    clients = len(shares)
    chi = clients * ((shares - 1 / clients) ** 2).sum(axis=0)
    return np.where(shares.any(axis=0), chi, clients - 1.0)


def _per_client(reach: npt.ArrayLike, num_clients: int | None) -> tuple[Array, int]:
    """Return chances of shape (1 or clients, layers), and the number of clients."""
    chances = np.asarray(reach, dtype=np.float64)
    if not (np.isfinite(chances).all() and (chances >= 0).all() and (chances <= 1).all()):
        raise ValueError("reach probabilities must lie between 0 and 1")
    if chances.ndim == 2 and num_clients in (None, len(chances)):
        return chances, len(chances)
    if chances.ndim == 1 and num_clients is not None and num_clients >= 1:
        return chances[None, :], num_clients
    raise ValueError(
        f"reach must have shape (clients, layers), or (layers,) with num_clients of at least 1, "
        f"not {chances.shape} with num_clients = {num_clients}"
    )


def _nodes(clients: int) -> tuple[Array, Array]:
    """Return the points and weights of Gauss–Legendre quadrature between 0 and 1."""
    nodes, weights = np.polynomial.legendre.leggauss(min(clients // 2 + 1, _MOST_NODES))
    return (nodes + 1) / 2, weights / 2


def _generating(chances: Array, points: Array, clients: int) -> Array:
    """Return E x^K at each point, shape (points, layers)."""
    factors = 1 - chances + chances * points[:, None, None]
    return np.asarray(factors[:, 0] ** clients if len(chances) == 1 else factors.prod(axis=1), dtype=np.float64)


def _any(chances: Array, clients: int) -> Array:
    """Return P(K ≥ 1) of each layer, exact to rounding also where it is tiny."""
    repeated = clients if len(chances) == 1 else 1
    with np.errstate(divide="ignore"):  # log 0, where a client never fails
        return np.asarray(-np.expm1(repeated * np.log1p(-chances).sum(axis=0)), dtype=np.float64)
