"""The claims of docs/theory.md on the ridge regressions of benchmarks/convergence.py, with fewer rounds."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "convergence.py"


@pytest.fixture(scope="module")
def code() -> dict[str, Any]:
    return runpy.run_path(str(BENCHMARK))


def test_the_optimum_and_the_moments_are_those_of_the_losses(code: dict[str, Any]) -> None:
    problem = code["Ridge"].draw(0)
    best = problem.minimum()
    rng = np.random.default_rng(2)
    for _ in range(5):
        away = best + 0.1 * rng.normal(size=best.shape)
        assert problem.losses(away).mean() > problem.losses(best).mean()
        assert problem.losses(away)[3] > problem.losses(problem.minimum(3))[3]
    given = problem.constants(np.zeros_like(best))
    assert 0 < given.strong_convexity < given.smoothness
    assert given.heterogeneity > 0


def test_the_error_stays_under_the_bound_and_falls_like_one_over_t(code: dict[str, Any]) -> None:
    measured = code["measure"](rounds=3000, seeds=40)
    assert (measured.layered <= measured.bound * (1 + 1e-12)).all()
    assert (measured.waiting <= measured.bound_waiting * (1 + 1e-12)).all()
    assert measured.moment <= 1  # or G² would not be what the bound was given
    assert measured.slope == pytest.approx(-1, abs=0.15)
    early, late = measured.ratio(300, 1000), measured.ratio(1000, 3001)
    assert late == pytest.approx(early, rel=0.25)
    assert late > 2  # the price of the stragglers is in the constant
