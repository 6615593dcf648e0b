"""How the contributors' number and identity vary a layer's step: against counting every set of clients."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st

from salf import theory

Array = npt.NDArray[np.float64]
chances = st.floats(0.02, 1) | st.sampled_from([0.0, 1.0])


def sets(row: list[float]) -> list[tuple[float, list[int]]]:
    """Every set of contributors, with its probability."""
    return [
        (
            math.prod(chance if here else 1 - chance for chance, here in zip(row, come, strict=True)),
            [client for client, here in enumerate(come) if here],
        )
        for come in itertools.product([False, True], repeat=len(row))
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(chances, chances), min_size=2, max_size=8))
def test_factors_and_shares_by_counting(rows: list[tuple[float, float]]) -> None:
    clients = len(rows)
    factors, shares = theory.variance_factor(reach=rows), theory.participation(reach=rows)
    uneven = theory.imbalance(reach=rows)
    for layer in (0, 1):
        outcomes = sets([row[layer] for row in rows])
        someone = sum(chance for chance, who in outcomes if who)
        if not someone:
            assert (factors[layer], uneven[layer]) == (math.inf, clients - 1)
            assert not shares[:, layer].any()
            continue
        factor = sum(c * (clients - len(who)) / (len(who) * (clients - 1)) for c, who in outcomes if who)
        assert factors[layer] == pytest.approx(factor / someone**2, rel=1e-9, abs=1e-12)
        own = [sum(c / len(who) for c, who in outcomes if client in who) / someone for client in range(clients)]
        np.testing.assert_allclose(shares[:, layer], own, rtol=1e-9, atol=1e-12)
        assert uneven[layer] == pytest.approx(clients * sum((s - 1 / clients) ** 2 for s in own), abs=1e-9)


@pytest.mark.parametrize("clients", [1, 2, 7, 300])
@pytest.mark.parametrize("chance", [1e-6, 0.03, 0.5, 1.0])
def test_the_factor_is_that_of_the_exact_variance(clients: int, chance: float) -> None:
    gradients = np.random.default_rng(0).normal(size=(clients, 3))
    gradients -= gradients.mean(axis=0)  # no ‖ḡ‖², so that the clients' differences are all there is
    spread = float((gradients**2).sum(axis=1).mean())
    exact = theory.estimator_variance(gradients=gradients, reach=chance)
    alike = theory.variance_factor(reach=[chance], num_clients=clients)
    assert spread * alike[0] == pytest.approx(exact, rel=1e-8, abs=1e-12)
    rows = theory.variance_factor(reach=[[chance]] * clients)
    np.testing.assert_allclose(rows, alike, rtol=1e-8, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(chances, min_size=2, max_size=5), st.integers(0, 2**32))
def test_the_bias_is_at_most_what_the_imbalance_allows(row: list[float], seed: int) -> None:
    gradients = np.random.default_rng(seed).normal(size=(len(row), 3))
    mean = gradients.mean(axis=0)
    spread = float(((gradients - mean) ** 2).sum(axis=1).mean())
    shares = theory.participation(reach=[[chance] for chance in row])[:, 0]
    if shares.any():
        bias = float(((shares @ gradients - mean) ** 2).sum())
        uneven = theory.imbalance(reach=[[chance] for chance in row])[0]
        assert bias <= spread * uneven * (1 + 1e-9) + 1e-15


@settings(max_examples=40, deadline=None)
@given(st.lists(chances, min_size=1, max_size=6), st.data(), st.integers(1, 3))
def test_nobody_of_those_drawn_by_counting(row: list[float], data: st.DataObject, enough: int) -> None:
    asked = data.draw(st.integers(0, len(row)))
    cohorts = [*itertools.combinations(row, asked)]
    counted = np.mean([sum(c for c, who in sets([*cohort]) if len(who) < enough) for cohort in cohorts])
    found = theory.empty_probability(reach=[[c] for c in row], num_clients=asked, min_contributors=enough)
    assert found == pytest.approx([counted], abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.variance_factor(reach=[1.5], num_clients=2), "between 0 and 1"),
        (lambda: theory.variance_factor(reach=[0.5]), "with num_clients of at least 1"),
        (lambda: theory.variance_factor(reach=[[0.5]], num_clients=2), r"shape \(1, 1\) with num_clients = 2"),
        (lambda: theory.participation(reach=[0.5]), r"shape \(1,\); give shape \(clients, layers\)"),
    ],
)
def test_wrong_arguments_are_explained(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
