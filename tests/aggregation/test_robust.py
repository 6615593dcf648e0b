"""Centres in place of the mean: against naive twins, and against what they are for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from aggregation_cases import Cohort, cohorts
from hypothesis import given, settings, strategies as st
from scipy import stats

from salf.aggregation.aggregation import aggregate
from salf.aggregation.robust import Centre, ClippedLayers, Median, RobustAggregation, TrimmedMean
from salf.aggregation.rules import Contributors, Corrected, Everyone, InverseProbability, Memory, Rule
from salf.errors import InvalidSetting, InvalidUpdate
from salf.layers.find import Layer, Layers
from salf.update import Update

EQUAL_RULES = [Corrected(), Contributors(), Everyone()]


class Mean(Centre):
    """The mean itself, with which robust aggregation must be aggregation."""

    def of(self, stacked: torch.Tensor) -> torch.Tensor:
        return stacked.mean(dim=0)


@settings(max_examples=60, deadline=None)
@given(cohort=cohorts(), rule=st.sampled_from(EQUAL_RULES), absent=st.integers(0, 3))
def test_with_the_mean_as_centre_it_is_aggregation(cohort: Cohort, rule: Rule, absent: int) -> None:
    count = len(cohort.updates) + absent
    reach = np.full(len(cohort.layers), 0.7)
    running = RobustAggregation(cohort.state, cohort.layers, rule, Mean(), reach=reach)
    for update in cohort.updates:
        running.add(update)
    found = running.finish(count)
    expected = aggregate(cohort.state, cohort.updates, cohort.layers, rule, num_clients=count, reach=reach)
    assert found.contributors == expected.contributors
    for layer in cohort.layers:
        for name in layer.parameters:
            slack = 1e-4 if cohort.state[name].dtype != torch.float64 else 1e-9
            torch.testing.assert_close(found.state[name], expected.state[name], rtol=slack, atol=slack)


@given(st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=1, max_size=9), st.floats(0, 0.49))
def test_centres_are_those_of_numpy_and_scipy(rows: list[list[float]], share: float) -> None:
    stacked = torch.tensor(rows, dtype=torch.float64)
    np.testing.assert_allclose(Median().of(stacked).numpy(), np.median(rows, axis=0), atol=1e-9)
    np.testing.assert_allclose(TrimmedMean(share).of(stacked).numpy(), stats.trim_mean(rows, share, axis=0), atol=1e-9)


LAYERS = Layers((Layer("first", ("a",)), Layer("second", ("b",), ("mean", "count"))), buffer_kinds={"count": "counter"})
STATE = {"a": torch.zeros(2), "b": torch.zeros(2), "mean": torch.zeros(2), "count": torch.tensor(3)}


def update_of(value: float, depth: int = 2) -> Update:
    deltas = {"b": torch.full((2,), value), **({"a": torch.full((2,), value)} if depth == 2 else {})}
    return Update(deltas, 1, 5, {"mean": torch.full((2,), value), "count": torch.tensor(int(value))})


def test_the_median_is_corrected_as_the_mean_would_be() -> None:
    running = RobustAggregation(STATE, LAYERS, Corrected(), Median(), reach=[0.5, 1.0])
    for value, depth in ((1.0, 2), (2.0, 1), (9.0, 2)):
        running.add(update_of(value, depth))
    found = running.finish(3)
    assert found.contributors == (2, 3)
    assert found.state["b"].tolist() == [2.0, 2.0]
    assert found.state["a"].tolist() == pytest.approx([5 / (1 - 0.5**3)] * 2)
    assert found.state["mean"].tolist() == [2.0, 2.0]
    assert found.state["count"].item() == 2


def test_what_does_not_belong_is_refused_and_changes_nothing() -> None:
    running = RobustAggregation(STATE, LAYERS, Contributors(), Median())
    running.add(update_of(1.0))
    with pytest.raises(InvalidUpdate):
        running.add(Update({"a": torch.tensor([1.0, float("nan")])}, 1, 5))
    assert running.finish(2).state["a"].tolist() == [1.0, 1.0]
    for rule in (Memory(), InverseProbability()):
        with pytest.raises(InvalidSetting, match="weighs all contributors equally"):
            RobustAggregation(STATE, LAYERS, rule, Median())
    for wrong in (-0.1, 0.5, 2.0):
        with pytest.raises(InvalidSetting, match="share is"):
            TrimmedMean(wrong)
    for norm in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidSetting, match="max_norm is"):
            ClippedLayers(norm)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_clients_of_other_precisions_have_one_centre(dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in STATE.items()}
    running = RobustAggregation(state, LAYERS, Contributors(), Median())
    for value, own in ((1.0, torch.bfloat16), (2.0, torch.float64), (9.0, torch.float32)):
        update = update_of(value)
        floats = {"mean": update.buffers["mean"].to(own)}
        deltas = {name: delta.to(own) for name, delta in update.deltas.items()}
        running.add(replace(update, deltas=deltas, buffers={**update.buffers, **floats}))
    found = running.finish().state
    assert [found[name].tolist() for name in ("a", "b", "mean")] == [[2.0, 2.0]] * 3
    assert {name: value.dtype for name, value in found.items()} == {name: value.dtype for name, value in state.items()}


def test_a_round_without_updates_leaves_the_state() -> None:
    found = RobustAggregation(STATE, LAYERS, Corrected(), Median()).finish(4)
    assert found.contributors == (0, 0)
    assert all(found.state[name].equal(value) for name, value in STATE.items())


@given(st.floats(0.1, 10), st.integers(0, 99))
def test_clipping_shortens_each_layer_and_turns_none(norm: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = Layers((Layer("first", ("a", "b")), Layer("second", ("c",))))
    deltas = {name: torch.randn(4, generator=generator) for name in ("a", "b", "c")}
    clipped = ClippedLayers(norm).clip(Update(deltas, 1, 5), layers).deltas
    for layer in layers:
        before, after = (torch.cat([each[name] for name in layer.parameters]) for each in (deltas, clipped))
        assert after.norm() <= norm * (1 + 1e-5)
        torch.testing.assert_close(after, before * min(1.0, norm / float(before.norm())))
