"""Every rule on every distribution of depths: mean and variance by simulation through the aggregation itself.

One large model holds many draws of a model of four layers; draw by draw, clients get as deep as the distribution says.
Seeds are fixed: of the 240 comparisons about one would by chance be more than three standard errors off.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch

from salf.aggregation.aggregation import Aggregation
from salf.aggregation.client_memory import ClientMemory
from salf.aggregation.rules import Contributors, Corrected, Everyone, InverseProbability, Memory, Rule
from salf.layers.find import Layer, Layers
from salf.theory import (
    DepthDistribution,
    EmpiricalDepth,
    ExponentialDepth,
    LogNormalDepth,
    UniformDepth,
    empty_probability,
    estimator_variance,
    reach_probability,
)
from salf.update import Update

Array = npt.NDArray[np.float64]

STANDARD_ERRORS = 3
DRAWS, DEEP, CLIENTS = 2000, 4, 5
NAMES = [f"{draw}.{layer}" for draw in range(DRAWS) for layer in range(DEEP)]
LAYERS = Layers(tuple(Layer(name, (name,)) for name in NAMES))
GRADIENTS = np.random.default_rng(1).normal(loc=[1.0, -0.5], size=(CLIENTS, 2))
EARLIER = np.random.default_rng(2).normal(loc=[-1.0, 0.5], size=(CLIENTS, 2))
COMPUTING, TRANSFER = (0.5, 0.8, 1.2, 1.6), (0.3, 0.4, 0.5, 0.6)
DEPTHS: dict[str, DepthDistribution] = {
    "uniform": UniformDepth(),
    "exponential": ExponentialDepth(0.5, 1.2),
    "log-normal": LogNormalDepth(COMPUTING, TRANSFER, 0.8, 0.3, 1.4),
    "empirical": EmpiricalDepth((3, 1, 0, 2, 2)),
}


def draw_depths(depth: DepthDistribution, seed: int) -> npt.NDArray[np.int64]:
    """How deep each client gets in each draw, from what the distribution stands for; shape (clients, draws)."""
    generator = np.random.default_rng(seed)
    size = (CLIENTS, DRAWS)
    if isinstance(depth, UniformDepth):
        return generator.integers(1, DEEP + 1, size=size)
    if isinstance(depth, EmpiricalDepth):
        return generator.choice(DEEP + 1, p=np.array(depth.counts) / sum(depth.counts), size=size)
    if isinstance(depth, ExponentialDepth):
        times = generator.exponential(depth.mean_layer_seconds, size=(*size, DEEP)).cumsum(axis=2)
        return np.asarray((times <= depth.deadline_seconds).sum(axis=2), dtype=np.int64)
    assert isinstance(depth, LogNormalDepth)
    slow = np.exp(depth.speed_sigma * generator.normal(size=size))[..., None]
    link = np.exp(depth.link_sigma * generator.normal(size=size))[..., None]
    times = slow * np.array(COMPUTING) + link * np.array(TRANSFER)
    return np.asarray((times <= depth.deadline_seconds).sum(axis=2), dtype=np.int64)


def aggregate(rule: Rule, vectors: Array, reached: npt.NDArray[np.bool_], reach: Array, memory: ClientMemory) -> Array:
    """How far each layer of each draw moves, shape (draws, layers, parameters)."""
    state = {name: torch.zeros(vectors.shape[1], dtype=torch.float64) for name in NAMES}
    running = Aggregation(state, LAYERS, rule, reach=reach, clients=range(CLIENTS), memory=memory)
    for client, vector in enumerate(vectors):
        delta = torch.as_tensor(vector)
        conveyed = np.flatnonzero(reached[client].ravel()).tolist()
        running.add(Update({NAMES[place]: delta for place in conveyed}, 1, 1))
    moved = running.finish(CLIENTS).state
    return torch.stack([moved[name] for name in NAMES]).numpy().reshape(DRAWS, DEEP, -1)


def remembered(reach: Array) -> ClientMemory:
    """What the server remembers after a round in which everyone conveyed everything."""
    state = {name: torch.zeros(EARLIER.shape[1], dtype=torch.float64) for name in NAMES}
    running = Aggregation(state, LAYERS, Memory(), reach=reach, clients=range(CLIENTS))
    for vector in EARLIER:
        running.add(Update(dict.fromkeys(NAMES, torch.as_tensor(vector)), 1, 1))
    return running.finish(CLIENTS).memory


@dataclass(frozen=True)
class Stated:
    """The mean and the variance of a layer's step that theory states, for one reach probability q."""

    mean: Array
    variance: float


def stated(rule: Rule, q: float) -> Stated:
    """Formulas of docs/theory.md."""
    mean, someone = GRADIENTS.mean(axis=0), 1 - (1 - q) ** CLIENTS
    squares = float((GRADIENTS**2).sum())
    if isinstance(rule, Corrected):
        return Stated(mean, estimator_variance(gradients=GRADIENTS, reach=q))
    if isinstance(rule, Contributors):
        return Stated(someone * mean, someone**2 * estimator_variance(gradients=GRADIENTS, reach=q))
    if isinstance(rule, Everyone):
        return Stated(q * mean, q * (1 - q) * squares / CLIENTS**2)
    if isinstance(rule, InverseProbability):
        return Stated(mean, (1 - q) / q * squares / CLIENTS**2)
    # Memory: (1/U) Σ_u M_u, where M_u is the gradient or the earlier one; a layer that no client sent stays.
    earlier, no_client = EARLIER.mean(axis=0), 1 - someone
    mixed = q * mean + (1 - q) * earlier
    second = q * (1 - q) * float(((GRADIENTS - EARLIER) ** 2).sum()) / CLIENTS**2 + float(mixed @ mixed)
    kept = mixed - no_client * earlier
    return Stated(kept, second - no_client * float(earlier @ earlier) - float(kept @ kept))


RULES = (Corrected(max_correction=10.0), Contributors(), Everyone(), InverseProbability(), Memory())
# What is remembered for thousands of draws takes seconds; one distribution in the default run shows the formula.
CASES = [
    pytest.param(
        rule,
        depth,
        id=f"{rule.name}-{name}",
        marks=[pytest.mark.slow] if isinstance(rule, Memory) and name != "exponential" else [],
    )
    for rule in RULES
    for name, depth in DEPTHS.items()
]


@pytest.mark.parametrize(("rule", "depth"), CASES)
def test_means_and_variances_are_as_stated(rule: Rule, depth: DepthDistribution) -> None:
    reach = reach_probability(depth=depth, num_layers=DEEP)
    reached = draw_depths(depth, seed=12)[:, :, None] >= np.arange(DEEP, 0, -1)
    memory = remembered(np.tile(reach, DRAWS)) if isinstance(rule, Memory) else {}
    moved = aggregate(rule, GRADIENTS, reached, np.tile(reach, DRAWS), memory)
    empty = empty_probability(reach=reach, num_clients=CLIENTS)
    assert empty.max() < 0.9  # so that no correction is capped
    for layer, q in enumerate(reach.tolist()):
        wanted = stated(rule, q)
        steps = moved[:, layer]
        error = steps.std(axis=0, ddof=1) / math.sqrt(DRAWS)
        assert (np.abs(steps.mean(axis=0) - wanted.mean) <= STANDARD_ERRORS * error + 1e-12).all()
        squares = ((steps - wanted.mean) ** 2).sum(axis=1)
        error = squares.std(ddof=1) / math.sqrt(DRAWS)
        assert abs(squares.mean() - wanted.variance) <= STANDARD_ERRORS * error + 1e-12
