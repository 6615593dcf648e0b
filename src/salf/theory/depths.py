"""How deep clients get: distributions of depth, and the chance that nobody reaches a layer."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, gammainc, ndtr

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
class LogNormalDepth:
    """Depth at a deadline of a device whose speed and link are log-normal: `salf.devices.Physical`, always on.

    The median device has computed its d-th layer after `computing_seconds[d − 1]`, and spends
    `transfer_seconds[d − 1]` on receiving the model and sending d layers, d = 1 … L. A device takes slow · computing +
    link · transfer, with independent log-normal factors of median 1 whose logarithms have the standard deviations
    `speed_sigma` and `link_sigma`. Within one round, all layers of a device have the same two factors.
    """

    computing_seconds: tuple[float, ...]
    transfer_seconds: tuple[float, ...]
    speed_sigma: float
    link_sigma: float
    deadline_seconds: float

    def at_least(self, num_layers: int) -> Array:
        """Return P(depth ≥ d) for d = 1 … num_layers: an average of normal distribution functions."""
        if not len(self.computing_seconds) == len(self.transfer_seconds) == num_layers:
            raise ValueError(
                f"computing_seconds and transfer_seconds must state {num_layers} times each, one per layer, "
                f"not {len(self.computing_seconds)} and {len(self.transfer_seconds)}"
            )
        return log_normal_reach(
            computing_seconds=self.computing_seconds,
            transfer_seconds=self.transfer_seconds,
            speed_sigma=self.speed_sigma,
            link_sigma=self.link_sigma,
            deadline_seconds=self.deadline_seconds,
        )


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


def log_normal_reach(
    *,
    computing_seconds: npt.ArrayLike,
    transfer_seconds: npt.ArrayLike,
    speed_sigma: float,
    link_sigma: float,
    deadline_seconds: float,
) -> Array:
    """Return P(slow · computing + link · transfer ≤ deadline), for arrays of computing and transfer times alike.

    `slow` and `link` are independent log-normal factors of median 1; see `LogNormalDepth`. Given one of them, the other
    must stay below a limit, which it does with a probability that is a normal distribution function. The factor whose
    spread is felt less is integrated out, by Gauss–Hermite quadrature, because the result is smooth in it.

    >>> log_normal_reach(
    ...     computing_seconds=[1.0, 2.0], transfer_seconds=[0, 0], speed_sigma=0.8, link_sigma=0.0, deadline_seconds=2.0
    ... ).round(4)
    array([0.8069, 0.5   ])
    """
    computing, transfer = np.broadcast_arrays(
        np.asarray(computing_seconds, dtype=np.float64), np.asarray(transfer_seconds, dtype=np.float64)
    )
    for name, values in (("computing_seconds", computing), ("transfer_seconds", transfer)):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(f"{name} must be finite and not negative")
    if not (0 <= speed_sigma < math.inf and 0 <= link_sigma < math.inf and deadline_seconds >= 0):
        raise ValueError(
            f"speed_sigma and link_sigma must be finite and, like deadline_seconds, not negative, "
            f"not {speed_sigma}, {link_sigma} and {deadline_seconds}"
        )
    by_speed = speed_sigma * computing >= link_sigma * transfer
    return np.where(
        by_speed,
        _below(computing, speed_sigma, transfer, link_sigma, deadline_seconds),
        _below(transfer, link_sigma, computing, speed_sigma, deadline_seconds),
    )


def _below(outer: Array, outer_sigma: float, inner: Array, inner_sigma: float, limit: float) -> Array:
    """Return P(e^(outer_sigma Y) · outer + e^(inner_sigma Z) · inner ≤ limit), Y and Z standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64 if inner_sigma else 1)
    left = limit - np.multiply.outer(np.exp(inner_sigma * nodes), inner)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # nothing is left, or nothing is to be done
        logarithms = np.log(np.maximum(left, 0.0)) - np.log(outer)
        chances = ndtr(logarithms / outer_sigma) if outer_sigma else np.zeros_like(left)
    certain = (left >= outer) if not outer_sigma else (left >= 0) & (outer == 0)
    chances = np.where(certain, 1.0, np.where(outer == 0, 0.0, chances))
    return np.asarray(np.tensordot(weights / weights.sum(), chances, axes=1), dtype=np.float64)


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

    `reach` has shape (layers,), the same for each of `num_clients` independent clients, or (clients, layers), of whom
    `num_clients` are asked, drawn without replacement; without it, all of them. With `min_contributors` = 1 this is the
    paper's p_l = P(U_l = ∅).

    >>> empty_probability(reach=[0.25, 1.0], num_clients=2)
    array([0.5625, 0.    ])
    >>> empty_probability(reach=[[0.25, 1.0], [0.5, 1.0]])
    array([0.375, 0.   ])
    >>> empty_probability(reach=[[0.25, 1.0], [0.5, 1.0]], num_clients=1)
    array([0.625, 0.   ])
    """
    chances = np.asarray(reach, dtype=np.float64)
    if not ((chances >= 0) & (chances <= 1)).all():  # as NaN does not
        raise ValueError("reach probabilities must lie between 0 and 1")
    if chances.ndim not in (1, 2):
        raise ValueError(f"reach must have shape (layers,) or (clients, layers), not {chances.shape}")
    if min_contributors < 1:
        raise ValueError(f"min_contributors is {min_contributors}, but must be at least 1")
    if chances.ndim == 1:
        if num_clients is None or num_clients < 0:
            raise ValueError("num_clients, at least 0, is needed when reach is the same for every client")
        too_few = min(min_contributors - 1, num_clients)
        return np.asarray(bdtr(too_few, num_clients, chances), dtype=np.float64)
    if num_clients is not None and not 0 <= num_clients <= len(chances):
        raise ValueError(f"reach has {len(chances)} rows for {num_clients} clients")
    chances = np.sort(chances, axis=0)  # so that not even rounding depends on the order of the clients
    if num_clients is not None and num_clients < len(chances):
        return _empty_of_some(chances, num_clients, min_contributors)
    if min_contributors == 1:
        return np.asarray((1 - chances).prod(axis=0), dtype=np.float64)
    # Poisson-binomial: carry the chances of 0, 1, … contributors so far, up to the first count that is enough.
    so_far = np.zeros((min_contributors, chances.shape[1]))
    so_far[0] = 1.0
    for client in chances:
        arrived = np.vstack([np.zeros_like(client), so_far[:-1]])
        so_far = so_far * (1 - client) + arrived * client
    return np.asarray(so_far.sum(axis=0), dtype=np.float64)


def _empty_of_some(chances: Array, asked: int, min_contributors: int) -> Array:
    """Carry the chances of (asked so far, contributors so far) through the population, client by client."""
    so_far = np.zeros((asked + 1, min_contributors, chances.shape[1]))
    so_far[0, 0] = 1.0
    places = np.arange(asked, -1, -1)[:, None, None]
    for left, client in zip(range(len(chances), 0, -1), chances, strict=True):
        drawn = so_far * np.clip(places / left, 0.0, 1.0)
        so_far = so_far - drawn
        so_far[1:] += drawn[:-1] * (1 - client)
        so_far[1:, 1:] += drawn[:-1, :-1] * client
    empty: Array = np.clip(so_far[asked].sum(axis=0), 0.0, 1.0)  # rounding may leave it a little outside
    return empty
