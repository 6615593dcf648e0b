"""The bound of the theorem against a plain loop, and its constants against what they must dominate."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st

from salf import theory
from salf.theory import Constants

Array = npt.NDArray[np.float64]


def constants(**changes: float) -> Constants:
    values = {
        "smoothness": 3.0,
        "strong_convexity": 0.5,
        "gradient_variance": 2.0,
        "second_moment": 1.5,
        "heterogeneity": 0.2,
        **changes,
    }
    return Constants(num_clients=int(values.pop("num_clients", 10)), **values)


any_constants = st.builds(
    Constants,
    smoothness=st.floats(1, 20),
    strong_convexity=st.floats(0.01, 1),
    gradient_variance=st.floats(0, 5),
    second_moment=st.floats(0, 5),
    heterogeneity=st.floats(0, 5),
    num_clients=st.integers(1, 50),
)


def loop(given: Constants, error: float, empty: Array, steps: Array) -> list[float]:
    """The recursion and its constants, spelled out as in docs/theory.md."""
    errors = [error]
    clients = given.num_clients
    base = given.gradient_variance / clients + 6 * given.smoothness * given.heterogeneity
    for chances, step in zip(empty, steps, strict=True):
        noise = sum((1 + p) / (1 - p) if p < 1 else math.inf for p in chances)
        noise *= 4 * given.second_moment * (clients / (clients - 1) if clients > 1 else 1)
        errors.append((1 - given.strong_convexity * step) * errors[-1] + step**2 * (base + noise))
    return errors


@settings(max_examples=60, deadline=None)
@given(any_constants, st.integers(1, 70), st.integers(1, 4), st.integers(0, 2**32), st.floats(0, 100))
def test_the_bound_is_that_of_a_loop(given: Constants, rounds: int, layers: int, seed: int, error: float) -> None:
    draw = np.random.default_rng(seed)
    empty = draw.random((rounds, layers)) * 0.99
    steps = draw.uniform(0.01, 1, rounds) / given.smoothness
    found = theory.bound(constants=given, initial_error=error, rounds=rounds, empty=empty, step_sizes=steps)
    np.testing.assert_allclose(found, loop(given, error, empty, steps), rtol=1e-10)
    decaying = theory.decaying_steps(constants=given, rounds=rounds)
    found = theory.bound(constants=given, initial_error=error, rounds=rounds, empty=empty[0])
    np.testing.assert_allclose(found, loop(given, error, np.tile(empty[0], (rounds, 1)), decaying), rtol=1e-10)


@settings(max_examples=60, deadline=None)
@given(any_constants, st.integers(1, 300), st.floats(0, 100), st.floats(0, 0.999))
def test_the_closed_form_lies_above_the_recursion(given: Constants, rounds: int, error: float, empty: float) -> None:
    for chances in ([empty, 0.1], None):
        recursion = theory.bound(constants=given, initial_error=error, rounds=rounds, empty=chances)
        closed = theory.asymptotic_bound(constants=given, initial_error=error, rounds=rounds, empty=chances)
        assert (recursion <= closed * (1 + 1e-12)).all()


@settings(max_examples=60, deadline=None)
@given(any_constants, st.integers(1, 60), st.integers(0, 2**32))
def test_weights_say_what_each_round_adds_to_the_last_bound(given: Constants, rounds: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    steps = draw.uniform(0.01, 1, rounds) / given.smoothness
    noise = draw.random(rounds)
    weights = theory.error_weights(constants=given, step_sizes=steps)
    last = theory.recursion(decay=1 - given.strong_convexity * steps, added=steps**2 * noise, start=0.0)[-1]
    assert weights @ noise == pytest.approx(last, rel=1e-10)


def test_many_rounds_of_long_steps_neither_underflow_nor_overflow() -> None:
    given = constants(smoothness=1.0, strong_convexity=1.0)
    steps = np.full(5000, 0.9)
    found = theory.bound(constants=given, initial_error=1.0, rounds=5000, empty=[0.5], step_sizes=steps)
    noise = 0.81 * (0.2 + 1.2 + 4 * 1.5 * 10 / 9 * 3)
    assert found[-1] == pytest.approx(noise / 0.9, rel=1e-12)


def test_a_round_in_which_a_layer_is_never_conveyed_makes_the_bound_infinite_from_then_on() -> None:
    empty = [[0.1], [1.0], [0.1]]
    found = theory.bound(constants=constants(), initial_error=1.0, rounds=3, empty=empty)
    assert np.isfinite(found).tolist() == [True, True, False, False]


@pytest.mark.parametrize("clients", [2, 5, 20])
@pytest.mark.parametrize("chance", [0.02, 0.3, 0.9, 1.0])
def test_what_the_deadline_adds_dominates_the_exact_variance(clients: int, chance: float) -> None:
    draw = np.random.default_rng(clients)
    gradients = draw.normal(loc=0.3, size=(clients, 4))
    moment = float((gradients**2).sum(axis=1).mean())
    exact = theory.estimator_variance(gradients=gradients, reach=chance)
    empty = theory.empty_probability(reach=[chance], num_clients=clients)
    # The step between the two in docs/theory.md: Var X ≤ (mean ‖g_u‖²)/(1 − p).
    assert exact <= moment / (1 - empty[0])
    given = constants(second_moment=moment, num_clients=clients)
    assert moment / (1 - empty[0]) <= theory.deadline_noise(constants=given, empty=empty)


def bound(**changes: object) -> Array:
    values: dict[str, object] = {"constants": constants(), "initial_error": 1.0, "rounds": 3, **changes}
    return theory.bound(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: constants(second_moment=-1.0), r"second_moment is -1\.0; choose a finite number of at least 0"),
        (lambda: constants(heterogeneity=math.nan, smoothness=math.inf), "smoothness is inf; choose a finite number"),
        (lambda: constants(strong_convexity=0.0), r"strong_convexity is 0\.0; choose a number greater than 0"),
        (lambda: constants(strong_convexity=4.0), r"strong_convexity is 4\.0; .* at most smoothness = 3\.0"),
        (lambda: constants(num_clients=0), "num_clients is 0"),
        (lambda: bound(empty=[1.2]), "give numbers between 0 and 1"),
        (lambda: bound(empty=0.2), r"shape \(…, layers\)"),
        (lambda: bound(empty=[[0.2]] * 2), "empty has 2 rows for 3 rounds"),
        (lambda: bound(step_sizes=[0.1, 0.1]), r"shape \(2,\); give shape \(3,\)"),
        (lambda: bound(step_sizes=[0.1, 0.1, 0.4]), "at most 1/smoothness = 0.333333"),
        (lambda: bound(step_sizes=[0.1, 0.1, 0.0]), "choose numbers greater than 0"),
        (lambda: bound(initial_error=-1.0), r"initial_error is -1\.0; choose a finite number of at least 0"),
        (lambda: bound(rounds=0), "rounds is 0; choose a whole number of at least 1"),
        (
            lambda: theory.decaying_steps(constants=constants(), rounds=2, scale=0.0),
            r"scale is 0\.0; choose a number greater than 0 and at most 8",
        ),
    ],
)
def test_wrong_arguments_are_explained(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
