"""Schedules of deadlines against a general optimiser, and against the conditions of an optimum."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import Bounds, LinearConstraint, minimize
from scipy.special import gammaincc

from salf import theory
from salf.theory import Constants

Array = npt.NDArray[np.float64]

CONSTANTS = Constants(
    smoothness=2.0, strong_convexity=1.0, gradient_variance=40.0, second_moment=1.0, heterogeneity=0.1, num_clients=6
)
RATES = np.geomspace(4, 60, 6)
COMMUNICATION = np.linspace(0, 0.8, 6)
LAYERS = 4


def naive_bound(deadlines: Array, scale: float, steps: Array) -> float:
    """The bound of a schedule, from the formulas of ALGORITHM's sections 5 and 6, in a loop."""
    error = 1.0
    for deadline, step in zip(deadlines, steps, strict=True):
        batches = scale * RATES * (deadline - COMMUNICATION) / deadline
        noise = float((40.0 / batches).sum()) / 36 + 6 * 2.0 * 0.1
        for layer in range(1, LAYERS + 1):
            empty = gammaincc(LAYERS + 1 - layer, deadline / scale) ** 6
            noise += 4 * 6 / 5 * (1 + empty) / (1 - empty)
        error = (1 - step) * error + step**2 * noise
    return error


def schedule(**changes: Any) -> theory.AdaptiveDeadlines:
    values: dict[str, Any] = {
        "constants": CONSTANTS,
        "num_layers": LAYERS,
        "rounds": 5,
        "total_seconds": 15.0,
        "initial_error": 1.0,
        "rates": RATES,
        "communication_seconds": COMMUNICATION,
        **changes,
    }
    return theory.adaptive_deadlines(**values)


STEPS = {
    "as in the authors' code": theory.decaying_steps(constants=CONSTANTS, rounds=5, scale=1.0),
    "constant": np.full(5, 0.3),
    "uneven": np.array([0.5, 0.05, 0.3, 0.02, 0.1]),
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("fixed", [None, 0.9])
def test_no_general_optimiser_finds_a_better_schedule(steps: Array, fixed: float | None) -> None:
    found = schedule(step_sizes=steps, layer_seconds=fixed, least_seconds=1.0)
    assert found.bound == pytest.approx(naive_bound(found.deadlines_seconds, found.layer_seconds, steps), rel=1e-9)
    assert found.deadlines_seconds.sum() == pytest.approx(15.0)
    best = minimize(  # type: ignore[call-overload]
        lambda x: naive_bound(x[:5], fixed or math.exp(x[5]), steps),
        np.array([3.0] * 5 + [0.0]),
        method="SLSQP",
        bounds=Bounds(np.array([1.0] * 5 + [-3.0]), np.array([15.0] * 5 + [math.log(3.0)])),
        constraints=LinearConstraint(np.array([1.0] * 5 + [0.0]), -np.inf, 15.0),
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert best.success
    assert found.bound <= best.fun * (1 + 1e-7)
    assert found.bound >= best.fun * (1 - 1e-4)  # or the two would not solve the same problem
    np.testing.assert_allclose(found.deadlines_seconds, best.x[:5], rtol=0.02)


def test_a_constant_deadline_is_worse_and_equal_weights_make_it_best() -> None:
    steps = np.array([0.5, 0.05, 0.3, 0.02, 0.1])
    found = schedule(step_sizes=steps)
    assert found.bound < naive_bound(np.full(5, 3.0), found.layer_seconds, steps)
    # ω_t = η_t² Π_{r>t} (1 − η_r) is the same for all rounds if η_t = η_{t+1}/√(1 − η_{t+1}).
    alike = [0.1]
    while len(alike) < 5:
        alike.insert(0, alike[0] / math.sqrt(1 - alike[0]))
    equal = schedule(step_sizes=np.array(alike))
    weights = theory.error_weights(constants=CONSTANTS, step_sizes=alike)
    assert weights == pytest.approx(np.full(5, weights[0]))
    np.testing.assert_allclose(equal.deadlines_seconds, 3.0, rtol=1e-6)


def test_rounds_that_count_more_last_longer() -> None:
    for steps in STEPS.values():
        found = schedule(step_sizes=steps, least_seconds=0.9)
        weights = theory.error_weights(constants=CONSTANTS, step_sizes=steps)
        order = np.argsort(weights)
        assert (np.diff(found.deadlines_seconds[order]) >= -1e-9).all()
        assert found.deadlines_seconds.min() >= 0.9


def test_a_thousand_rounds() -> None:
    steps = theory.decaying_steps(constants=CONSTANTS, rounds=1000, scale=1.0)
    found = schedule(rounds=1000, total_seconds=3000.0)
    assert found.deadlines_seconds.shape == (1000,)
    assert found.deadlines_seconds.sum() == pytest.approx(3000.0)
    assert found.bound == pytest.approx(naive_bound(found.deadlines_seconds, found.layer_seconds, steps), rel=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(20):  # moving time from some rounds to others never helps
        moved = found.deadlines_seconds * np.exp(0.05 * rng.normal(size=1000))
        moved *= 3000.0 / moved.sum()
        assert naive_bound(moved, found.layer_seconds, steps) >= found.bound


def test_rounds_whose_weight_underflows_are_as_short_as_may_be() -> None:
    steps = np.full(30_000, 0.3)
    weights = theory.error_weights(constants=CONSTANTS, step_sizes=steps)
    assert weights[0] == 0
    lengths = np.linspace(1, 9, 500)
    found = theory.allocate_seconds(seconds=lengths, noise=1 / lengths, weights=weights, total_seconds=30_100.0)
    assert found.sum() == pytest.approx(30_100.0)
    assert found[0] == pytest.approx(1.0)
    assert found[-1] > 5


def test_a_single_round_gets_all_the_time() -> None:
    found = schedule(rounds=1, total_seconds=4.0, layer_seconds=1.0)
    assert found.deadlines_seconds.tolist() == [4.0]


@pytest.mark.parametrize("deadline", [1.0, 3.0])
def test_scaled_batches_give_every_client_the_same_depths(deadline: float) -> None:
    batches = theory.scaled_batches(
        layer_seconds=0.5, rates=RATES, deadline_seconds=deadline, communication_seconds=COMMUNICATION
    )
    per_layer = batches / RATES
    some = batches > 1
    np.testing.assert_allclose(((deadline - COMMUNICATION) / per_layer)[some], deadline / 0.5)
    assert (((deadline - COMMUNICATION) / per_layer)[~some] <= deadline / 0.5).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=2, max_size=6), st.lists(st.floats(0.1, 5), min_size=1, max_size=3))
def test_allocation_of_a_rough_table_is_a_mixture_within_the_budget(noise: list[float], weights: list[float]) -> None:
    lengths = np.arange(1.0, len(noise) + 1)
    for total in (len(weights) * 1.0, len(weights) * 1.7, len(weights) * 20.0):
        found = theory.allocate_seconds(seconds=lengths, noise=noise, weights=weights, total_seconds=total)
        assert found.sum() <= total * (1 + 1e-9)
        assert 1.0 <= found.min() <= found.max() <= 1 + np.argmin(noise)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=3), st.floats(1.05, 4.0))
def test_allocation_of_a_smooth_table_against_a_grid_of_all_schedules(weights: list[float], average: float) -> None:
    lengths = np.geomspace(1, 12, 500)
    total = average * len(weights)
    found = theory.allocate_seconds(seconds=lengths, noise=1 / lengths**2, weights=weights, total_seconds=total)
    choices = np.linspace(1.0, total - len(weights) + 1, 40)
    best = min(
        sum(weight / length**2 for weight, length in zip(weights, (*some, total - sum(some)), strict=True))
        for some in itertools.product(choices, repeat=len(weights) - 1)
        if total - sum(some) >= 1
    )
    assert (np.array(weights) / found**2).sum() <= best * (1 + 1e-5)


def allocate(**changes: Any) -> Array:
    values: dict[str, Any] = {"seconds": [1.0, 2.0], "noise": [2.0, 1.0], "weights": [1.0], "total_seconds": 1.5}
    return theory.allocate_seconds(**{**values, **changes})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedule(rates=[1.0] * 5), "rates cannot be used; give 6 positive numbers"),
        (lambda: schedule(rates=[1.0] * 5 + [0.0]), "rates cannot be used; give 6 positive numbers"),
        (lambda: schedule(communication_seconds=[1.0, 2.0]), "communication_seconds cannot be used; give one number"),
        (lambda: schedule(communication_seconds=-1.0), "communication_seconds cannot be used; give one number"),
        (lambda: schedule(total_seconds=3.0), "needs at least 0.84 s.*3 s allow 0.6 s; raise total_seconds"),
        (lambda: schedule(least_seconds=0.5), "longest communication of 0.8 s"),
        (lambda: schedule(total_seconds=math.inf), "inf s allow inf s"),
        (lambda: schedule(layer_seconds=0.0), r"layer_seconds is 0\.0; choose a number greater than 0"),
        (lambda: schedule(num_layers=0), "num_layers is 0; choose a whole number of at least 1"),
        (lambda: allocate(seconds=[2.0, 1.0]), "give seconds that increase"),
        (lambda: allocate(noise=[math.inf, math.inf]), "some of them finite"),
        (lambda: allocate(weights=[0.0]), "give finite numbers of at least 0, some of them positive"),
        (lambda: allocate(weights=[-1.0]), "weights cannot be used"),
        (lambda: allocate(total_seconds=0.5), "0.5 s are too little for 1 rounds of at least 1 s"),
        (
            lambda: theory.scaled_batches(
                layer_seconds=1.0, rates=[1.0], deadline_seconds=1.0, communication_seconds=2
            ),
            r"deadline_seconds is 1\.0; choose more than the longest communication, 2 s",
        ),
    ],
)
def test_wrong_arguments_are_explained(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
