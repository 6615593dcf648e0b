import math

import numpy as np
import numpy.typing as npt
import pytest

from salf.data import dirichlet
from salf.errors import InvalidSetting


def balanced(count: int, classes: int = 10) -> npt.NDArray[np.int64]:
    return np.arange(count) % classes


@pytest.mark.parametrize("alpha", [1e3, 1e9, 1e300, 1.7e308])
def test_a_large_alpha_tends_to_uniform(alpha: float) -> None:
    labels = balanced(20_000)
    counts = np.array([np.bincount(labels[held], minlength=10) for held in dirichlet(labels, 20, 0, alpha=alpha)])
    # 2000 of each class: a share of 1/20 has relative standard deviation √(19 / (20 α + 1)).
    assert abs(counts - 100).max() <= 1 + 5 * 100 * math.sqrt(19 / (20 * alpha + 1))


def test_dirichlet_shares_have_the_moments_of_the_distribution() -> None:
    labels = np.zeros(10_000, np.int64)
    shares = np.array([dirichlet(labels, clients=4, seed=seed, alpha=2.0).sizes for seed in range(800)]) / len(labels)
    assert shares.mean(axis=0) == pytest.approx(np.full(4, 0.25), abs=0.03)
    # Var = (1/K)(1 − 1/K) / (Kα + 1)
    assert shares.var(axis=0) == pytest.approx(np.full(4, 0.25 * 0.75 / 9), rel=0.2)


def test_a_smaller_alpha_is_more_uneven() -> None:
    labels = balanced(6000)

    def largest_share(alpha: float) -> float:
        held = dirichlet(labels, 10, 0, alpha=alpha)
        return float(np.mean([np.bincount(labels[each]).max() / len(each) for each in held]))

    assert largest_share(0.05) > largest_share(0.5) + 0.1 > largest_share(50) + 0.2


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-9])
def test_a_tiny_alpha_gives_each_class_to_one_client(alpha: float) -> None:
    labels = balanced(200)
    partition = dirichlet(labels, 2, 0, alpha=alpha)
    assert not set(labels[partition[0]].tolist()) & set(labels[partition[1]].tolist())
    with pytest.raises(InvalidSetting, match=r"left some of the 30 clients without .* raise data.alpha or lower"):
        dirichlet(labels, 30, 0, alpha=alpha)


def test_dirichlet_repeats_a_draw_that_leaves_somebody_out() -> None:
    # With two examples and two clients half of all draws do; none of these may fail.
    for seed in range(50):
        assert dirichlet(np.array([0, 1]), 2, seed, alpha=1.0).sizes.tolist() == [1, 1]


def test_few_examples_of_a_class_do_not_always_go_to_the_same_clients() -> None:
    # 5 examples for 10 clients at equal shares: were the shares rounded alike in each class, half would get nothing.
    partition = dirichlet(np.arange(500) // 5, 10, 0, alpha=1e6)
    assert partition.sizes.min() > 25


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_an_alpha_that_is_not_a_positive_number_is_refused(alpha: float) -> None:
    with pytest.raises(InvalidSetting, match=rf"data\.alpha is {alpha}; choose a (finite )?number greater than 0"):
        dirichlet(balanced(10), clients=2, seed=0, alpha=alpha)
