"""Log-normal depths, round times and kept work: against devices that are drawn."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, strategies as st

from salf import theory
from salf.theory import ExponentialDepth, LogNormalDepth

Array = npt.NDArray[np.float64]
ROUNDS, CLIENTS, LAYERS = 40_000, 5, 4
COMPUTING, TRANSFER = (0.5, 0.8, 1.2, 1.6), (0.3, 0.4, 0.8, 0.9)


def log_normal_times(generator: np.random.Generator, depth: LogNormalDepth) -> Array:
    """When each layer is conveyed, shape (rounds, clients, layers), the output layer first."""
    slow = np.exp(depth.speed_sigma * generator.normal(size=(ROUNDS, CLIENTS, 1)))
    link = np.exp(depth.link_sigma * generator.normal(size=(ROUNDS, CLIENTS, 1)))
    return np.asarray(slow * np.array(COMPUTING) + link * np.array(TRANSFER))


def exponential_times(generator: np.random.Generator, depth: ExponentialDepth) -> Array:
    """When each layer is conveyed, shape (rounds, clients, layers), the output layer first."""
    return generator.exponential(depth.mean_layer_seconds, size=(ROUNDS, CLIENTS, LAYERS)).cumsum(axis=2)


CASES = [
    *(
        LogNormalDepth(COMPUTING, TRANSFER, speed, link, 1.9)
        for speed, link in [(0.8, 0.1), (0.1, 0.9), (0.8, 0.8), (0.3, 0.0), (0.0, 0.3)]
    ),
    ExponentialDepth(0.5, 1.9),
]


@pytest.mark.parametrize("depth", CASES, ids=str)
def test_depths_rounds_and_work_are_as_drawn(depth: LogNormalDepth | ExponentialDepth) -> None:
    generator = np.random.default_rng(7)
    times = (
        log_normal_times(generator, depth) if isinstance(depth, LogNormalDepth) else exponential_times(generator, depth)
    )
    reached = times <= depth.deadline_seconds
    stated = depth.at_least(LAYERS)
    frequency = reached.mean(axis=(0, 1))
    error = np.sqrt(stated * (1 - stated) / (ROUNDS * CLIENTS))
    assert (np.abs(frequency - stated) <= 3 * error + 1e-12).all()
    lasted = np.minimum(times[:, :, -1].max(axis=1), depth.deadline_seconds)
    mean = theory.round_seconds(depth=depth, num_layers=LAYERS, num_clients=CLIENTS)
    assert abs(lasted.mean() - mean) <= 3 * lasted.std() / math.sqrt(ROUNDS) + 1e-6
    costs = np.array([3.0, 1.0, 2.0, 0.5])  # input to output
    kept = theory.kept_by_dropping(reach=theory.reach_probability(depth=depth, num_layers=LAYERS), costs=costs)
    finished = (reached[:, :, ::-1] @ costs).sum()
    assert kept == pytest.approx(reached[:, :, -1].sum() * costs.sum() / finished, rel=0.02, abs=1e-3)


@given(st.floats(0, 2), st.floats(0, 2), st.floats(0, 5))
def test_log_normal_chances_fall_with_depth_and_rise_with_the_deadline(speed: float, link: float, end: float) -> None:
    now, later = (LogNormalDepth(COMPUTING, TRANSFER, speed, link, t).at_least(4) for t in (end, end + 0.5))
    assert ((now >= 0) & (now <= 1)).all()
    assert (np.diff(now) <= 1e-12).all()
    assert (later >= now - 1e-12).all()


def test_nothing_random_and_nothing_to_do() -> None:
    still = LogNormalDepth((1.0, 2.0), (0.5, 0.5), 0.0, 0.0, 1.5)
    assert still.at_least(2).tolist() == [1.0, 0.0]
    assert LogNormalDepth((0.0,), (0.0,), 0.5, 0.5, 0.0).at_least(1).tolist() == [1.0]
    assert LogNormalDepth((1.0,), (2.0,), 0.5, 0.0, 1.0).at_least(1).tolist() == [0.0]
    assert math.isnan(theory.kept_by_dropping(reach=[0.0, 0.0], costs=[1.0, 1.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LogNormalDepth((1.0,), (1.0, 2.0), 0, 0, 1).at_least(2), "have 1 and 2 times; give 2 times each"),
        (
            lambda: LogNormalDepth((-1.0,), (1.0,), 0, 0, 1).at_least(1),
            "computing_seconds holds a negative or infinite time",
        ),
        (
            lambda: LogNormalDepth((1.0,), (math.nan,), 0, 0, 1).at_least(1),
            "transfer_seconds holds a negative or infinite time",
        ),
        (
            lambda: LogNormalDepth((1.0,), (1.0,), -1, 0, 1).at_least(1),
            "speed_sigma is -1; choose a finite number of at least 0",
        ),
        (
            lambda: LogNormalDepth((1.0,), (1.0,), 0, 0, -1).at_least(1),
            "deadline_seconds is -1; choose a number of at least 0",
        ),
        (lambda: theory.round_seconds(depth=ExponentialDepth(1, 1), num_layers=1, num_clients=0), "num_clients is 0"),
        (lambda: theory.kept_by_dropping(reach=[0.5, 1.0], costs=[1.0]), "costs do not fit reach; give 2 numbers"),
        (lambda: theory.kept_by_dropping(reach=[0.5], costs=[-1.0]), "give 1 numbers"),
    ],
)
def test_wrong_arguments_are_explained(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
