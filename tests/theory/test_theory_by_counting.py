"""The formulas of `salf.theory` against counting every case, and against drawing."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st
from scipy.special import gammaincc

from salf.theory import (
    DepthDistribution,
    EmpiricalDepth,
    ExponentialDepth,
    UniformDepth,
    empty_probability,
    estimator_variance,
    reach_probability,
)

Array = npt.NDArray[np.float64]
chances = st.floats(0, 1) | st.sampled_from([0.0, 1.0])


def subsets(probabilities: list[float]) -> list[tuple[float, list[int]]]:
    """Every set of clients that may come, with its probability."""
    return [
        (
            math.prod(chance if here else 1 - chance for chance, here in zip(probabilities, come, strict=True)),
            [client for client, here in enumerate(come) if here],
        )
        for come in itertools.product([False, True], repeat=len(probabilities))
    ]


@given(st.lists(st.tuples(chances, chances), min_size=1, max_size=7), st.integers(1, 8))
def test_too_few_contributors_by_counting(rows: list[tuple[float, float]], enough: int) -> None:
    counted = [
        sum(chance for chance, who in subsets([row[layer] for row in rows]) if len(who) < enough) for layer in (0, 1)
    ]
    np.testing.assert_allclose(empty_probability(reach=rows, min_contributors=enough), counted, rtol=0, atol=1e-12)


@given(chances, st.integers(0, 7), st.integers(1, 8))
def test_too_few_of_clients_alike_by_counting(chance: float, clients: int, enough: int) -> None:
    counted = sum(share for share, who in subsets([chance] * clients) if len(who) < enough)
    alike = empty_probability(reach=[chance], num_clients=clients, min_contributors=enough)
    np.testing.assert_allclose(alike, [counted], rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_layers", [1, 2, 5, 13])
@pytest.mark.parametrize("clients", [1, 4, 30])
def test_the_papers_two_depth_models(num_layers: int, clients: int) -> None:
    layer = np.arange(1, num_layers + 1)
    uniform = reach_probability(depth=UniformDepth(), num_layers=num_layers)
    np.testing.assert_allclose(
        empty_probability(reach=uniform, num_clients=clients),
        ((num_layers - layer) / num_layers) ** clients,
        atol=1e-14,
    )
    exponential = reach_probability(depth=ExponentialDepth(0.4, 1.5), num_layers=num_layers)
    np.testing.assert_allclose(
        empty_probability(reach=exponential, num_clients=clients),
        gammaincc(num_layers + 1 - layer, 1.5 / 0.4) ** clients,
        rtol=1e-10,
    )


def draw_uniform(generator: np.random.Generator, size: tuple[int, int], num_layers: int) -> npt.NDArray[np.int64]:
    return generator.integers(2, num_layers + 1, size=size)


def draw_exponential(generator: np.random.Generator, size: tuple[int, int], num_layers: int) -> npt.NDArray[np.int64]:
    finished = generator.exponential(0.4, size=(*size, num_layers)).cumsum(axis=-1)
    return np.asarray((finished <= 1.5).sum(axis=-1), dtype=np.int64)


@pytest.mark.parametrize(
    ("depth", "draw"), [(UniformDepth(lowest=2), draw_uniform), (ExponentialDepth(0.4, 1.5), draw_exponential)]
)
@pytest.mark.parametrize("enough", [1, 2])
def test_drawn_depths_leave_layers_empty_as_often_as_stated(
    depth: DepthDistribution,
    draw: Callable[[np.random.Generator, tuple[int, int], int], npt.NDArray[np.int64]],
    enough: int,
) -> None:
    rounds, num_layers, clients = 100_000, 5, 3
    depths = draw(np.random.default_rng(3), (rounds, clients), num_layers)
    layer = np.arange(1, num_layers + 1)
    contributors = (depths[:, :, None] >= num_layers - layer + 1).sum(axis=1)
    stated = empty_probability(
        reach=reach_probability(depth=depth, num_layers=num_layers), num_clients=clients, min_contributors=enough
    )
    error = np.sqrt(stated * (1 - stated) / rounds)
    assert (np.abs((contributors < enough).mean(axis=0) - stated) <= 4.5 * error + 1e-12).all()


@given(st.lists(st.integers(0, 20), min_size=2, max_size=7).filter(any))
def test_counted_depths(counts: list[int]) -> None:
    num_layers = len(counts) - 1
    depths = [depth for depth, count in enumerate(counts) for _ in range(count)]
    reached = [
        sum(depth >= num_layers - layer + 1 for depth in depths) / len(depths) for layer in range(1, len(counts))
    ]
    found = reach_probability(depth=EmpiricalDepth(tuple(counts)), num_layers=num_layers)
    np.testing.assert_allclose(found, reached, atol=1e-15)


@given(st.integers(1, 9), st.data())
def test_reach_grows_towards_the_output(num_layers: int, data: st.DataObject) -> None:
    depths: list[DepthDistribution] = [
        UniformDepth(data.draw(st.integers(0, num_layers))),
        ExponentialDepth(data.draw(st.floats(1e-3, 1e3)), data.draw(st.floats(0, 1e3))),
    ]
    for depth in depths:
        found = reach_probability(depth=depth, num_layers=num_layers)
        assert found.shape == (num_layers,)
        assert ((found >= 0) & (found <= 1)).all()
        assert (np.diff(found) >= 0).all()


def counted_variance(vectors: Array, probabilities: list[float]) -> float:
    """E‖X − E X‖² of the corrected mean, over every set of clients."""
    conveyed = 1 - math.prod(1 - chance for chance in probabilities)
    outcomes = [
        (share, vectors[who].mean(axis=0) / conveyed if who else np.zeros(vectors.shape[1]))
        for share, who in subsets(probabilities)
    ]
    mean = sum(share * outcome for share, outcome in outcomes)
    return float(sum(share * ((outcome - mean) ** 2).sum() for share, outcome in outcomes))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 3), st.integers(0, 2**32), st.data())
def test_the_variance_by_counting(clients: int, parameters: int, seed: int, data: st.DataObject) -> None:
    vectors = np.random.default_rng(seed).normal(loc=0.5, size=(clients, parameters))
    row = data.draw(st.lists(st.floats(0.05, 1) | st.sampled_from([0.0, 1.0]), min_size=clients, max_size=clients))
    alike = data.draw(st.floats(0.02, 1))
    if any(row):
        unlike = estimator_variance(gradients=vectors, reach=row)
        assert unlike == pytest.approx(counted_variance(vectors, row), rel=1e-10, abs=1e-10)
        assert unlike >= 0
    counted = counted_variance(vectors, [alike] * clients)
    assert estimator_variance(gradients=vectors, reach=alike) == pytest.approx(counted, rel=1e-10, abs=1e-10)
    in_rows = estimator_variance(gradients=vectors, reach=[alike] * clients)
    assert in_rows == pytest.approx(counted, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("chance", [1e-9, 1e-18, 1e-100])
def test_the_variance_of_what_almost_never_comes(chance: float) -> None:
    # With at most one contributor, Var = E‖g‖²/P(someone) − ‖ḡ‖²: (1 + 9)/2 / 2q − 4.
    for reach in (chance, [chance, chance]):
        assert estimator_variance(gradients=[[1.0], [3.0]], reach=reach) == pytest.approx(2.5 / chance, rel=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: empty_probability(reach=[0.5]), "num_clients is None; pass a number of at least 0"),
        (lambda: empty_probability(reach=[0.5], num_clients=-1), "num_clients is -1; pass a number of at least 0"),
        (lambda: empty_probability(reach=[-0.1], num_clients=1), "between 0 and 1"),
        (lambda: empty_probability(reach=[[1.1]]), "between 0 and 1"),
        (lambda: empty_probability(reach=[[math.nan]]), "between 0 and 1"),
        (
            lambda: empty_probability(reach=0.5, num_clients=3),
            r"shape \(\); give shape \(layers,\) or \(clients, layers\)",
        ),
        (lambda: empty_probability(reach=[[[0.5]]]), r"reach has shape \(1, 1, 1\)"),
        (
            lambda: empty_probability(reach=[[0.5]], num_clients=2),
            "num_clients is 2; choose at most the 1 rows of reach",
        ),
        (lambda: empty_probability(reach=[[0.5]], min_contributors=0), "min_contributors is 0"),
        (lambda: empty_probability(reach=[0.5], num_clients=2, min_contributors=-1), "min_contributors is -1"),
        (lambda: reach_probability(depth=UniformDepth(), num_layers=0), "num_layers is 0"),
        (
            lambda: reach_probability(depth=UniformDepth(lowest=4), num_layers=3),
            "lowest is 4; choose a depth between 0 and num_layers = 3",
        ),
        (lambda: reach_probability(depth=UniformDepth(lowest=-1), num_layers=3), "lowest is -1"),
        (lambda: reach_probability(depth=ExponentialDepth(0.0, 1.0), num_layers=3), "greater than 0"),
        (lambda: reach_probability(depth=ExponentialDepth(math.inf, 1.0), num_layers=3), "greater than 0"),
        (lambda: reach_probability(depth=ExponentialDepth(1.0, -1.0), num_layers=3), "deadline_seconds is .*; choose"),
        (
            lambda: reach_probability(depth=ExponentialDepth(1.0, math.nan), num_layers=3),
            "deadline_seconds is .*; choose",
        ),
        (lambda: reach_probability(depth=EmpiricalDepth((1, 2)), num_layers=3), "give 4 numbers"),
        (lambda: reach_probability(depth=EmpiricalDepth((0, 0)), num_layers=1), "not all 0"),
        (lambda: reach_probability(depth=EmpiricalDepth((3, -1)), num_layers=1), "numbers ≥ 0"),
        (lambda: reach_probability(depth=EmpiricalDepth((math.nan, 1)), num_layers=1), "numbers ≥ 0"),
        (lambda: reach_probability(depth=EmpiricalDepth((math.inf, 1)), num_layers=1), "numbers ≥ 0"),
        (lambda: estimator_variance(gradients=[1.0, 2.0], reach=0.5), r"shape \(clients, parameters\)"),
        (lambda: estimator_variance(gradients=[[1.0]], reach=[0.5, 0.5]), "one probability or one per client"),
        (lambda: estimator_variance(gradients=[[1.0]], reach=1.5), "between 0 and 1"),
        (lambda: estimator_variance(gradients=[[1.0]], reach=math.nan), "between 0 and 1"),
        (lambda: estimator_variance(gradients=[[1.0], [2.0]], reach=[0.0, 0.0]), "reach is 0 for every client"),
    ],
)
def test_wrong_arguments_are_explained(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
