"""Mean duration of a round with a deadline, and the share of work that survives."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import scipy

from salf.errors import InvalidSetting, check_count
from salf.theory.depths import ExponentialDepth, LogNormalDepth


def round_seconds(*, depth: ExponentialDepth | LogNormalDepth, num_layers: int, num_clients: int) -> float:
    """Return the mean duration of a round with a deadline, in seconds.

    A round ends at the deadline, or when the last client has finished:
    E min(T, max_u W_u) = ∫₀ᵀ (1 − P(W ≤ t)^U) dt, where W is the time of a client's whole step. A client finishes by t
    if it would reach layer 1 with t as its deadline. The clients are independent and take one local step each.

    Args:
        depth: The distribution of depths; its `deadline_seconds` is T.
        num_layers: L, at least 1.
        num_clients: U, at least 1.

    >>> round(round_seconds(depth=ExponentialDepth(1.0, 2.0), num_layers=1, num_clients=1), 6)   # 1 − e⁻²
    0.864665
    """
    check_count("num_clients", num_clients)

    def unfinished(seconds: float) -> float:
        return 1 - float(replace(depth, deadline_seconds=seconds).at_least(num_layers)[-1]) ** num_clients

    return float(scipy.integrate.quad(unfinished, 0.0, depth.deadline_seconds, limit=200)[0])


def kept_by_dropping(*, reach: npt.ArrayLike, costs: npt.ArrayLike) -> float:
    """Return the share of finished backward work that dropping stragglers keeps.

    Layer-wise updates keep all of Σ_u Σ_l c_l π_{u,l}. Dropping keeps only whole steps, Σ_u π_{u,1} Σ_l c_l. The result
    is their ratio, for one local step; NaN if no client finishes a layer.

    Args:
        reach: Probabilities π of shape (clients, layers) or (layers,).
        costs: Costs c_l ≥ 0 of the layers' backward passes, shape (layers,), in any unit.

    >>> kept_by_dropping(reach=[0.25, 0.5, 0.75, 1.0], costs=[1.0, 1.0, 1.0, 1.0])
    0.4
    """
    chances, each = np.atleast_2d(np.asarray(reach, dtype=np.float64)), np.asarray(costs, dtype=np.float64)
    if chances.ndim != 2 or each.shape != chances.shape[1:] or not (each >= 0).all():
        raise InvalidSetting(f"costs do not fit reach; give {chances.shape[-1]} numbers ≥ 0, one for each layer")
    finished = float((chances @ each).sum())
    return float(chances[:, 0].sum() * each.sum()) / finished if finished else float("nan")
