"""The fused engine gives the states that the plain one gives, whatever the model, the round and the rule."""

import pytest
from engine_cases import (
    DECAYING,
    DOUBLE,
    HEAVY,
    SGD,
    SINGLE,
    assert_close,
    engine_for,
    play,
    prepared,
    rounds,
    single_thread,
)
from engine_models import MODELS
from hypothesis import given, settings, strategies as st

from salf.engines import FusedEngine

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)


def compare(name: str, data: st.DataObject, *, double: bool) -> None:
    subject = prepared(name, double=double)
    how = data.draw(st.sampled_from([SGD, DECAYING, HEAVY]))
    fused, plain = (engine_for(kind, name, how, double=double) for kind in ("fused", "plain"))
    assert isinstance(fused, FusedEngine)
    played = data.draw(rounds(len(subject.layers), apart=fused.layers_apart, sums=not fused.clients_apart))
    assert_close(play(fused, subject, played), play(plain, subject, played), DOUBLE if double else SINGLE)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_in_double_precision(name: str, data: st.DataObject) -> None:
    compare(name, data, double=True)


# The same rounds each time: a number that is rounded to the other side of a ReLU's kink changes more than rounding.
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(data=st.data())
def test_in_single_precision(name: str, data: st.DataObject) -> None:
    compare(name, data, double=False)
