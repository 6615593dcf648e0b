"""A client whose update is not finite is left out by every engine, and by each of them it alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_cases import (
    DOUBLE,
    SGD,
    SINGLE,
    Result,
    Round,
    Subject,
    assert_close,
    play,
    single_thread,
    steps_to,
    subject_of,
    tasks_of,
)
from engine_models import MODELS, built, data_for
from hypothesis import given, settings, strategies as st

from salf.aggregation.aggregation import Aggregation
from salf.aggregation.rules import Contributors, Corrected, InverseProbability, Memory, Rule
from salf.engines import OptimizerSettings

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)

FAST = ["fused", "stacked"]


def poisoned(name: str, value: float, *, double: bool = True) -> Subject:
    """A model whose first example makes trouble: it is multiplied by `value`."""
    inputs, labels = (tensor.clone() for tensor in data_for(name, double=double))
    inputs[0] *= value
    model = built(MODELS[name], double=double)
    return subject_of(model, inputs.roll(1, 0), labels)._replace(inputs=inputs)


def a_round(layers: int, depths: list[int], bad: list[int], seed: int = 0) -> Round:
    """A round in which the clients at the places `bad` have the troublesome example in their batch."""
    tasks = tasks_of(steps_to(depths, layers), [3] * len(depths), seed=seed)
    tasks.batches[tasks.batches == 0] = 1
    tasks.batches[bad, -1, 1] = 0
    return Round(tasks, Corrected())


@pytest.mark.parametrize("name", ["mlp", "cnn", "vgg", "residual"])
@pytest.mark.parametrize("kind", FAST)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_who_is_rejected_is_who_the_plain_engine_rejects(kind: str, name: str, data: st.DataObject) -> None:
    subject = poisoned(name, data.draw(st.sampled_from([np.inf, -np.inf, np.nan])))
    layers = len(subject.layers)
    depths = data.draw(st.lists(st.integers(0, layers), min_size=2, max_size=5))
    bad = data.draw(st.lists(st.integers(0, len(depths) - 1), max_size=2, unique=True))
    played = a_round(layers, depths, bad)
    result, expected = play(subject.engine(kind), subject, played), play(subject.engine("plain"), subject, played)
    assert expected.accepted == [place not in bad or not depths[place] for place in range(len(depths))]
    assert_close(result, expected, DOUBLE)


@pytest.mark.parametrize("kind", FAST)
def test_the_others_count_as_if_they_had_been_alone_among_as_many(kind: str) -> None:
    subject = poisoned("cnn", np.inf)
    played = a_round(4, [4, 4, 2], bad=[1])
    result = play(subject.engine(kind), subject, played)
    alone = play(subject.engine("plain"), subject, played.permuted([0, 2]))
    assert result.accepted == [True, False, True]
    assert result.aggregated.contributors == alone.aggregated.contributors == (1, 1, 2, 2)
    kept = Round(played.tasks, Contributors())
    for name, value in play(subject.engine(kind), subject, kept).aggregated.state.items():
        expected = play(subject.engine("plain"), subject, kept.permuted([0, 2])).aggregated.state[name]
        assert value.allclose(expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", FAST)
def test_a_round_in_which_everybody_is_rejected_moves_nothing(kind: str) -> None:
    subject = poisoned("cnn", np.inf)
    result = play(subject.engine(kind), subject, a_round(4, [4, 2, 1], bad=[0, 1, 2]))
    assert result.accepted == [False] * 3
    assert all(torch.equal(value, subject.weights[name]) for name, value in result.aggregated.state.items())


@pytest.mark.parametrize("kind", FAST)
def test_each_client_is_weighed_by_its_own_reach_when_another_is_rejected(kind: str) -> None:
    subject = poisoned("cnn", np.inf)
    played = a_round(4, [4, 4, 2, 3], bad=[1])
    reach = np.random.default_rng(3).uniform(0.2, 1, size=(4, 4))
    own = Round(played.tasks, InverseProbability(), reach)
    assert_close(play(subject.engine(kind), subject, own), play(subject.engine("plain"), subject, own), DOUBLE)


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_rejected_is_not_remembered(kind: str, value: float) -> None:
    subject = poisoned("cnn", value)
    played = replace(a_round(4, [4, 4, 2, 3, 0], bad=[1, 3]), rule=Memory())
    result, expected = play(subject.engine(kind), subject, played), play(subject.engine("plain"), subject, played)
    assert expected.accepted == [True, False, True, False, True]
    assert_close(result, expected, DOUBLE)
    assert result.aggregated.memory.keys() == expected.aggregated.memory.keys() == {0, 2, 4}


def rejected(name: str, kind: str, value: float, how: OptimizerSettings = SGD) -> tuple[Result, Result]:
    subject = poisoned(name, value, double=False)
    layers = len(subject.layers)
    played = a_round(layers, [layers, layers, layers - 1], bad=[1])
    expected = play(subject.engine("plain", how), subject, played)
    assert expected.accepted == [True, False, True]
    return play(subject.engine(kind, how), subject, played), expected


@pytest.mark.parametrize("kind", ["stacked", "fused"])
def test_statistics_that_overflow_are_the_clients_own_affair(kind: str) -> None:
    # A variance of 1e50 is beyond single precision; what was divided by it is zero, and so are the gradients.
    result, expected = rejected("vgg", kind, 1e25)
    assert_close(result, expected, SINGLE)


@pytest.mark.parametrize("kind", FAST)
def test_an_update_that_overflows_after_its_gradient_did_not_is_the_clients_own_affair(kind: str) -> None:
    result, expected = rejected("mlp", kind, 1e38, OptimizerSettings(lr=100.0))
    assert_close(result, expected, SINGLE)


@pytest.mark.parametrize("kind", FAST)
def test_updates_whose_sum_alone_overflows_are_accepted_by_every_engine(kind: str) -> None:
    subject = poisoned("mlp", 1e38, double=False)
    layers = len(subject.layers)
    played = a_round(layers, [layers] * 6, bad=[0, 1, 2, 3, 4, 5])
    how = OptimizerSettings(lr=1e-3)
    result, expected = (play(subject.engine(each, how), subject, played) for each in (kind, "plain"))
    assert result.accepted == expected.accepted
    assert result.aggregated.overflowed == expected.aggregated.overflowed


@pytest.mark.parametrize("kind", FAST)
def test_who_is_to_blame_for_a_layer_that_stays_is_refused_all_the_same(kind: str) -> None:
    """Client 0 alone conveys the first layer, which two would have to convey, and only there it is not finite."""
    first = torch.nn.Linear(2, 3, bias=False)
    model = torch.nn.Sequential(first, torch.nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        first.weight.mul_(1e-30)
    inputs, labels = torch.ones(40, 2), torch.arange(40) % 2
    inputs[0] *= 1e30
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    subject = subject_of(model, inputs.roll(1, 0), labels)._replace(inputs=inputs, weights=weights)
    played = replace(a_round(2, [2, 1, 1], bad=[0]), rule=Corrected(min_contributors=2))
    how = OptimizerSettings(lr=1e12)
    result, expected = (play(subject.engine(each, how), subject, played) for each in (kind, "plain"))
    assert result.accepted == expected.accepted == [False, True, True]
    assert result.aggregated.contributors == expected.aggregated.contributors == (0, 2)
    assert_close(result, expected, SINGLE)


@pytest.mark.parametrize("rule", [Contributors(), Memory()])
def test_in_half_precision_sums_of_many_gradients_stay_in_range(rule: Rule) -> None:
    """No client's mean gradient leaves it, but their sums would before they are multiplied by the step size."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).half()
    draw = torch.Generator().manual_seed(0)
    inputs, labels = 2e4 * torch.rand(40, 4, generator=draw).half(), torch.arange(40) % 2
    subject = subject_of(model, inputs, labels)
    played = Round(tasks_of(steps_to([2, 2, 2, 1], 2), [64] * 4), rule)
    how = OptimizerSettings(lr=1e-4)
    fused = subject.engine("fused", how)
    running = Aggregation(subject.weights, subject.layers, rule)
    assert fused.train_cohort(subject.weights, played.tasks, running).all()
    assert not running.finish().overflowed
    expected = play(subject.engine("plain", how), subject, played)
    assert play(fused, subject, played).accepted == expected.accepted == [True] * 4


def test_a_decay_beyond_the_range_of_the_weights_is_the_clients_own_affair() -> None:
    subject, how = poisoned("mlp", 1.0, double=False), OptimizerSettings(lr=1e10, weight_decay=1e30)
    layers = len(subject.layers)
    played = a_round(layers, [layers, layers, 1], bad=[])
    result, expected = (play(subject.engine(kind, how), subject, played) for kind in ("fused", "plain"))
    assert result.accepted == expected.accepted == [False] * 3
