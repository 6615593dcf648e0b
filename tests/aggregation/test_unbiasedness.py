"""Means and variances of the rules, by simulation through the aggregation itself.

Each layer of one large model is an independent draw: it is reached by a random set of clients, and every client's
update for it is the same vector in every draw.
"""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from salf.aggregation.aggregation import Aggregation
from salf.aggregation.rules import Contributors, Corrected, Everyone, InverseProbability, Rule
from salf.layers.find import Layer, Layers
from salf.theory import estimator_variance
from salf.update import Update

Array = npt.NDArray[np.float64]

STANDARD_ERRORS = 4.5  # two-sided, about 7 in a million
LAYERS = Layers(tuple(Layer(str(draw), (f"{draw}.w",)) for draw in range(20_000)))


def simulate(
    rule: Rule, vectors: Array, chances: Array, *, seed: int, examples: list[int] | None = None, layers: Layers = LAYERS
) -> Array:
    """How far each draw moves, shape (draws, parameters); `chances` has one probability per client."""
    draws = len(layers)
    reached = np.random.default_rng(seed).random((len(vectors), draws)) < chances[:, None]
    state = {f"{draw}.w": torch.zeros(vectors.shape[1], dtype=torch.float64) for draw in range(draws)}
    alike = bool((chances == chances[0]).all())
    reach = np.full(draws, chances[0]) if alike else np.tile(chances[:, None], draws)
    running = Aggregation(state, layers, rule, reach=reach)
    for client, vector in enumerate(vectors):
        delta = torch.as_tensor(vector)
        conveyed = np.flatnonzero(reached[client]).tolist()
        running.add(Update({f"{draw}.w": delta for draw in conveyed}, 1, examples[client] if examples else 1))
    moved = running.finish(len(vectors)).state
    return torch.stack([moved[name] for name in state]).numpy()


def assert_mean(moved: Array, wanted: Array) -> None:
    error = moved.std(axis=0, ddof=1) / math.sqrt(len(moved))
    assert (np.abs(moved.mean(axis=0) - wanted) <= STANDARD_ERRORS * error).all()


def assert_variance(moved: Array, mean: Array, wanted: float) -> None:
    squares = ((moved - mean) ** 2).sum(axis=1)
    error = squares.std(ddof=1) / math.sqrt(len(squares))
    assert abs(squares.mean() - wanted) <= STANDARD_ERRORS * error
    assert error < 0.03 * wanted  # or this would say little


def vectors(clients: int, *, seed: int) -> Array:
    return np.random.default_rng(seed).normal(loc=[1.0, -0.5, 0.2], size=(clients, 3))


def exact_variance(gradients: Array, q: float) -> float:
    """σ²/(1−p)² · Σ P(K=k)·(U−k)/(k(U−1)) + ‖ḡ‖²·p/(1−p), spelled out."""
    clients, mean = len(gradients), gradients.mean(axis=0)
    p = (1 - q) ** clients
    total = 0.0
    for k in range(1, clients + 1):
        chance = math.comb(clients, k) * q**k * (1 - q) ** (clients - k)
        total += chance * (clients - k) / (k * (clients - 1))
    spread = float(((gradients - mean) ** 2).sum() / clients)
    return spread / (1 - p) ** 2 * total + float(mean @ mean) * p / (1 - p)


@pytest.mark.parametrize(("clients", "q", "seed"), [(5, 1 / 6, 1), (30, 0.05, 2)])
def test_corrected_is_unbiased_with_the_exact_variance(clients: int, q: float, seed: int) -> None:
    gradients = vectors(clients, seed=seed)
    moved = simulate(Corrected(), gradients, np.full(clients, q), seed=seed)
    assert_mean(moved, gradients.mean(axis=0))
    variance = exact_variance(gradients, q)
    assert_variance(moved, gradients.mean(axis=0), variance)
    assert estimator_variance(gradients=gradients, reach=q) == pytest.approx(variance, rel=1e-12)
    assert estimator_variance(gradients=gradients, reach=[q] * clients) == pytest.approx(variance, rel=1e-10)


def test_corrected_is_unbiased_for_any_weights_when_depths_are_alike() -> None:
    gradients, examples = vectors(4, seed=4), [1, 2, 10, 40]
    moved = simulate(Corrected(weight_by_examples=True), gradients, np.full(4, 0.3), seed=4, examples=examples)
    assert_mean(moved, np.average(gradients, axis=0, weights=examples))


def test_inverse_probability_is_unbiased_when_some_are_slower() -> None:
    gradients, examples, chances = vectors(4, seed=5), [5, 1, 3, 2], np.array([0.15, 0.9, 0.5, 0.3])
    rule = InverseProbability(weight_by_examples=True)
    moved = simulate(rule, gradients, chances, seed=5, examples=examples)
    weights = np.array(examples) / sum(examples)
    assert_mean(moved, weights @ gradients)
    variance = float(((weights**2 * (1 - chances) / chances)[:, None] * gradients**2).sum())
    assert_variance(moved, weights @ gradients, variance)


def test_the_corrected_mean_has_the_stated_variance_when_some_are_slower() -> None:
    gradients, chances = vectors(4, seed=6), np.array([0.15, 0.9, 0.5, 0.3])
    moved = simulate(Corrected(), gradients, chances, seed=6)
    assert_variance(moved, moved.mean(axis=0), estimator_variance(gradients=gradients, reach=chances))


@pytest.mark.parametrize(
    ("rule", "factor"),
    [
        (Everyone(), 0.2),  # q, the share that reaches the layer
        (Contributors(), 1 - 0.8**4),  # 1 − p
        (Corrected(max_correction=1.25), 1.25 * (1 - 0.8**4)),
        (Corrected(min_contributors=2, max_correction=9), 1.0),
        (Contributors(min_contributors=2), 1 - 0.8**4 - 4 * 0.2 * 0.8**3),
    ],
)
def test_the_share_of_the_mean_that_remains(rule: Rule, factor: float) -> None:
    gradients = vectors(4, seed=7)
    moved = simulate(rule, gradients, np.full(4, 0.2), seed=7, layers=Layers(LAYERS[:6000]))
    assert_mean(moved, factor * gradients.mean(axis=0))


@pytest.mark.parametrize(("reach", "moved"), [(0.5, 1.6), (0.1, 1.6), (0.0, 1.6), (0.75, 4 / 3), (1.0, 1.0)])
def test_the_correction_is_capped(reach: float, moved: float) -> None:
    layers = Layers((Layer("only", ("w",)),))
    running = Aggregation({"w": torch.zeros(1)}, layers, Corrected(max_correction=1.6), reach=[reach])
    running.add(Update({"w": torch.ones(1)}, 1, 1))
    assert running.finish().state["w"].item() == pytest.approx(moved, rel=1e-6)


@pytest.mark.parametrize(("reach", "moved"), [(0.5, 2.0), (0.1, 4.0), (0.25, 4.0), (1.0, 1.0)])
def test_nobody_counts_for_more_than_the_inverse_of_the_least_probability(reach: float, moved: float) -> None:
    layers = Layers((Layer("only", ("w",)),))
    rule = InverseProbability(least_probability=0.25)
    running = Aggregation({"w": torch.zeros(1)}, layers, rule, reach=[reach])
    running.add(Update({"w": torch.ones(1)}, 1, 1))
    assert running.finish().state["w"].item() == pytest.approx(moved, rel=1e-6)
