"""The cases of `salf bench` can be measured on a CUDA device."""

import pytest
from cuda_cases import NEEDS_CUDA, QUIET, cuda

from salf.bench import all_cases
from salf.engines.accelerator import CPU, title_of

pytestmark = [NEEDS_CUDA, QUIET]


@pytest.mark.parametrize("name", ["fused/mlp-30", "round/mlp-30", "loop/mlp-30", "aggregate/memory", "memory/cnn-1000"])
def test_the_cases_can_be_measured(name: str) -> None:
    case = next(case for case in all_cases(cuda()) if case.name == name)
    assert case.measure(0.0).value > 0


def test_the_same_cases_are_known_on_each_device() -> None:
    here, there = ([(case.name, case.target) for case in all_cases(device)] for device in (CPU, cuda()))
    assert here == there
    assert title_of(cuda()) not in ("", "cpu")
