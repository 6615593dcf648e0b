"""Distributions of a client's depth, and what follows: empty layers, round durations, and work that survives."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import scipy

from salf.errors import InvalidSetting, check_count, check_non_negative, check_positive
from salf.values import Floats


@runtime_checkable
class DepthDistribution(Protocol):
    """The distribution of one client's depth in one round."""

    def at_least(self, num_layers: int) -> Floats:
        """Return P(depth ≥ d) for d = 1 … num_layers."""
        ...


@dataclass(frozen=True)
class UniformDepth:
    """Depth uniform on {lowest … L}: the model of the paper's experiments.

    There `lowest` is 1, so every client completes at least the output layer.

    >>> UniformDepth(lowest=2).at_least(4)
    array([1.        , 1.        , 0.66666667, 0.33333333])
    """

    lowest: int = 1

    def at_least(self, num_layers: int) -> Floats:
        """Return P(depth ≥ d) for d = 1 … num_layers."""
        if not 0 <= self.lowest <= num_layers:
            raise InvalidSetting(f"lowest is {self.lowest}; choose a depth between 0 and num_layers = {num_layers}")
        depths = np.arange(1, num_layers + 1)
        return np.minimum(1.0, (num_layers - depths + 1) / (num_layers - self.lowest + 1))


@dataclass(frozen=True)
class ExponentialDepth:
    """Depth at a deadline when layers take independent exponential times.

    This is the model of the paper's analysis. The forward pass takes no time. The number of layers completed by time T
    is then a Poisson variable cut off at L.

    Attributes:
        mean_layer_seconds: Mean backward time of one layer, greater than 0.
        deadline_seconds: Time T from the start of the round, at least 0.

    >>> ExponentialDepth(1.0, 2.0).at_least(2).round(4)   # 1 − e⁻², 1 − 3e⁻²
    array([0.8647, 0.594 ])
    """

    mean_layer_seconds: float
    deadline_seconds: float

    def at_least(self, num_layers: int) -> Floats:
        """Return P(depth ≥ d) for d = 1 … num_layers, by the Erlang distribution."""
        check_positive("mean_layer_seconds", self.mean_layer_seconds)
        if not self.deadline_seconds >= 0:
            raise InvalidSetting(f"deadline_seconds is {self.deadline_seconds}; choose a number of at least 0")
        depths = np.arange(1, num_layers + 1)
        reached = scipy.special.gammainc(depths, self.deadline_seconds / self.mean_layer_seconds)
        return np.asarray(reached, dtype=np.float64)


@dataclass(frozen=True)
class LogNormalDepth:
    """Depth at a deadline of a device with log-normal speed and link.

    It is `salf.devices.Physical` for devices that are always available. A device needs slow · computing + link ·
    transfer seconds for a depth. The factors `slow` and `link` are independent and log-normal with median 1. In one
    round, all layers of a device share them.

    Attributes:
        computing_seconds: When the median device has computed its d-th layer, d = 1 … L.
        transfer_seconds: Time in which the median device receives the model and sends d layers, d = 1 … L.
        speed_sigma: Standard deviation of log slow, at least 0.
        link_sigma: Standard deviation of log link, at least 0.
        deadline_seconds: Time from the start of the round, at least 0.

    >>> LogNormalDepth((1.0, 2.0), (0.0, 0.0), 0.8, 0.0, deadline_seconds=2.0).at_least(2).round(4)
    array([0.8069, 0.5   ])
    """

    computing_seconds: tuple[float, ...]
    transfer_seconds: tuple[float, ...]
    speed_sigma: float
    link_sigma: float
    deadline_seconds: float

    def at_least(self, num_layers: int) -> Floats:
        """Return P(depth ≥ d) for d = 1 … num_layers."""
        if not len(self.computing_seconds) == len(self.transfer_seconds) == num_layers:
            raise InvalidSetting(
                f"computing_seconds and transfer_seconds have {len(self.computing_seconds)} and "
                f"{len(self.transfer_seconds)} times; give {num_layers} times each, one per layer"
            )
        return log_normal_reach(**vars(self))


@dataclass(frozen=True)
class EmpiricalDepth:
    """Depths as counted: `counts[d]` clients completed exactly d layers, d = 0 … L.

    >>> EmpiricalDepth((1, 0, 3)).at_least(2)
    array([0.75, 0.75])
    """

    counts: tuple[float, ...]

    def at_least(self, num_layers: int) -> Floats:
        """Return P(depth ≥ d) for d = 1 … num_layers."""
        counts = np.asarray(self.counts, dtype=np.float64)
        if counts.shape != (num_layers + 1,) or not (np.isfinite(counts) & (counts >= 0)).all() or not counts.any():
            raise InvalidSetting(
                f"counts do not fit {num_layers} layers; give {num_layers + 1} numbers ≥ 0 (depths 0 … {num_layers}) "
                "that are not all 0"
            )
        return np.asarray(counts[::-1].cumsum()[::-1][1:] / counts.sum(), dtype=np.float64)


def log_normal_reach(
    *,
    computing_seconds: npt.ArrayLike,
    transfer_seconds: npt.ArrayLike,
    speed_sigma: float,
    link_sigma: float,
    deadline_seconds: float,
) -> Floats:
    """Return P(slow · computing + link · transfer ≤ deadline) for each pair of times.

    `LogNormalDepth` explains the factors. Given one factor, the other must stay below a limit, with a probability from
    the normal distribution. The factor whose spread matters less is integrated out by Gauss–Hermite quadrature.

    Args:
        computing_seconds: Times of the median device, of any shape.
        transfer_seconds: Times of the same shape, or one that broadcasts.
        speed_sigma: Standard deviation of log slow, at least 0.
        link_sigma: Standard deviation of log link, at least 0.
        deadline_seconds: At least 0.

    >>> times = {"computing_seconds": [1.0, 2.0], "transfer_seconds": [0.0, 0.0]}
    >>> log_normal_reach(**times, speed_sigma=0.8, link_sigma=0.0, deadline_seconds=2.0).round(4)
    array([0.8069, 0.5   ])
    """
    computing, transfer = np.broadcast_arrays(
        np.asarray(computing_seconds, dtype=np.float64), np.asarray(transfer_seconds, dtype=np.float64)
    )
    for name, values in (("computing_seconds", computing), ("transfer_seconds", transfer)):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise InvalidSetting(f"{name} holds a negative or infinite time; give finite times of at least 0")
    check_non_negative("speed_sigma", speed_sigma)
    check_non_negative("link_sigma", link_sigma)
    if not deadline_seconds >= 0:
        raise InvalidSetting(f"deadline_seconds is {deadline_seconds}; choose a number of at least 0")
    by_speed = speed_sigma * computing >= link_sigma * transfer
    return np.where(
        by_speed,
        _below(computing, speed_sigma, transfer, link_sigma, deadline_seconds),
        _below(transfer, link_sigma, computing, speed_sigma, deadline_seconds),
    )


def _below(outer: Floats, outer_sigma: float, inner: Floats, inner_sigma: float, limit: float) -> Floats:
    """Return P(e^(outer_sigma Y) · outer + e^(inner_sigma Z) · inner ≤ limit).

    Y and Z are standard normal.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(64 if inner_sigma else 1)
    left = limit - np.multiply.outer(np.exp(inner_sigma * nodes), inner)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # no time is left, or none is needed
        logarithms = np.log(np.maximum(left, 0.0)) - np.log(outer)
        chances = scipy.special.ndtr(logarithms / outer_sigma) if outer_sigma else np.zeros_like(left)
    certain = (left >= outer) if not outer_sigma else (left >= 0) & (outer == 0)
    chances = np.where(certain, 1.0, np.where(outer == 0, 0.0, chances))
    return np.asarray(np.tensordot(weights / weights.sum(), chances, axes=1), dtype=np.float64)


def as_probabilities(name: str, values: npt.ArrayLike) -> Floats:
    """Return an argument as an array of values between 0 and 1, none of them NaN."""
    chances = np.asarray(values, dtype=np.float64)
    if not ((chances >= 0) & (chances <= 1)).all():
        raise InvalidSetting(f"{name} holds a value that is no probability; give numbers between 0 and 1")
    return chances


def reach_probability(*, depth: DepthDistribution, num_layers: int) -> Floats:
    """Return the probability that a client reaches each layer, input to output.

    A client of depth d has completed the d layers nearest the output, so it reaches layer l when d ≥ L − l + 1.

    >>> reach_probability(depth=UniformDepth(), num_layers=4)
    array([0.25, 0.5 , 0.75, 1.  ])
    """
    check_count("num_layers", num_layers)
    return depth.at_least(num_layers)[::-1].copy()


def empty_probability(*, reach: npt.ArrayLike, num_clients: int | None = None, min_contributors: int = 1) -> Floats:
    """Return p_l = P(fewer than `min_contributors` clients reach layer l).

    The shape is (layers,). With `min_contributors` = 1 this is the paper's p_l = P(U_l = ∅).

    Args:
        reach: Probabilities of shape (layers,), the same for all clients, or (clients, layers).
        num_clients: Clients in a round. Required for shape (layers,), where they are independent. For shape (clients,
            layers) they are drawn without replacement; None takes all of them.
        min_contributors: At least 1.

    >>> empty_probability(reach=[0.25, 1.0], num_clients=2)
    array([0.5625, 0.    ])
    >>> empty_probability(reach=[[0.25, 1.0], [0.5, 1.0]])
    array([0.375, 0.   ])
    >>> empty_probability(reach=[[0.25, 1.0], [0.5, 1.0]], num_clients=1)
    array([0.625, 0.   ])
    """
    chances = as_probabilities("reach", reach)
    check_count("min_contributors", min_contributors)
    if chances.ndim == 1:
        if num_clients is None or num_clients < 0:
            raise InvalidSetting(f"num_clients is {num_clients}; pass a number of at least 0 with one reach for all")
        too_few = min(min_contributors - 1, num_clients)
        return np.asarray(scipy.special.bdtr(too_few, num_clients, chances), dtype=np.float64)
    if chances.ndim != 2:
        raise InvalidSetting(f"reach has shape {chances.shape}; give shape (layers,) or (clients, layers)")
    if num_clients is not None and not 0 <= num_clients <= len(chances):
        raise InvalidSetting(f"num_clients is {num_clients}; choose at most the {len(chances)} rows of reach")
    chances = np.sort(chances, axis=0)  # so that not even rounding depends on the order of the clients
    if num_clients is not None and num_clients < len(chances):
        return _empty_of_some(chances, num_clients, min_contributors)
    if min_contributors == 1:
        return np.asarray((1 - chances).prod(axis=0), dtype=np.float64)
    return _empty_of_all(chances, min_contributors)


def _empty_of_all(chances: Floats, min_contributors: int) -> Floats:
    """Carry the probabilities of 0, 1, … contributors through all clients."""
    so_far = np.zeros((min_contributors, chances.shape[1]))
    so_far[0] = 1.0
    for client in chances:
        arrived = np.vstack([np.zeros_like(client), so_far[:-1]])
        so_far = so_far * (1 - client) + arrived * client
    return np.asarray(so_far.sum(axis=0), dtype=np.float64)


def _empty_of_some(chances: Floats, cohort: int, min_contributors: int) -> Floats:
    """Carry the probabilities of (clients drawn, contributors) through the population."""
    so_far = np.zeros((cohort + 1, min_contributors, chances.shape[1]))
    so_far[0, 0] = 1.0
    places = np.arange(cohort, -1, -1)[:, None, None]
    for left, client in zip(range(len(chances), 0, -1), chances, strict=True):
        drawn = so_far * np.clip(places / left, 0.0, 1.0)
        so_far = so_far - drawn
        so_far[1:] += drawn[:-1] * (1 - client)
        so_far[1:, 1:] += drawn[:-1, :-1] * client
    empty: Floats = np.clip(so_far[cohort].sum(axis=0), 0.0, 1.0)  # rounding may leave it slightly outside
    return empty


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
