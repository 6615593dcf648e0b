"""Batches of one example, which models without batch normalisation can be trained on."""

import pytest
from engine_cases import DOUBLE, SGD, Round, assert_close, engine_for, play, prepared, single_thread, steps_to, tasks_of

from salf.aggregation.rules import Corrected

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)


@pytest.mark.parametrize("sizes", [1, 3], ids=["all of one", "one of one"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("kind", ["fused", "stacked"])
def test_a_batch_of_one_example(kind: str, name: str, sizes: int) -> None:
    subject = prepared(name)
    layers = len(subject.layers)
    tasks = tasks_of(steps_to([layers, 0, layers - 1, 1, layers], layers), [sizes, sizes, 1, sizes, sizes])
    played = Round(tasks, Corrected())
    fast, plain = (engine_for(each, name, SGD) for each in (kind, "plain"))
    assert_close(play(fast, subject, played), play(plain, subject, played), DOUBLE)
