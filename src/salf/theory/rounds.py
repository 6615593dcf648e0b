"""How long rounds last, and what becomes of the clients' work, at a deadline."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad

from salf.theory.depths import ExponentialDepth, LogNormalDepth


def round_seconds(*, depth: ExponentialDepth | LogNormalDepth, num_layers: int, num_clients: int) -> float:
    """Return the mean duration of a round that ends at the deadline, or when the last client has finished before.

    E min(T, max_u W_u) = ∫₀ᵀ (1 − P(W ≤ t)^U) dt, where W is the time of a client's whole step: it has finished by t if
    t as a deadline would let it reach layer 1. Holds for independent clients with one local step each.

    >>> round(round_seconds(depth=ExponentialDepth(1.0, 2.0), num_layers=1, num_clients=1), 6)   # 1 − e⁻²
    0.864665
    """
    if num_clients < 1:
        raise ValueError(f"num_clients is {num_clients}, but at least one client must be asked")

    def going_on(seconds: float) -> float:
        return 1 - float(replace(depth, deadline_seconds=seconds).at_least(num_layers)[-1]) ** num_clients

    return float(quad(going_on, 0.0, depth.deadline_seconds, limit=200)[0])


def kept_by_dropping(*, reach: npt.ArrayLike, costs: npt.ArrayLike) -> float:
    """Return the share of the finished backward work that is left when unfinished clients are discarded.

    By the deadline client u has finished layer l, which costs c_l, with the probability π_{u,l} of `reach`, shape
    (clients, layers) or (layers,); `costs` has shape (layers,). Layer-wise updates keep all of Σ_u Σ_l c_l π_{u,l};
    dropping keeps the whole steps alone, Σ_u π_{u,1} Σ_l c_l. Holds for one local step; NaN where nobody does anything.

    >>> kept_by_dropping(reach=[0.25, 0.5, 0.75, 1.0], costs=[1.0, 1.0, 1.0, 1.0])
    0.4
    """
    chances, each = np.atleast_2d(np.asarray(reach, dtype=np.float64)), np.asarray(costs, dtype=np.float64)
    if chances.ndim != 2 or each.shape != chances.shape[1:] or not (each >= 0).all():
        raise ValueError(f"costs must be {chances.shape[-1]} numbers ≥ 0, one for each layer")
    finished = float((chances @ each).sum())
    return float(chances[:, 0].sum() * each.sum()) / finished if finished else float("nan")
