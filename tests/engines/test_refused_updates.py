"""A client whose update is not finite is refused by every engine alike, and everybody else counts."""

import copy

import pytest
import torch
from engine_cases import (
    DOUBLE,
    SGD,
    Round,
    Subject,
    assert_close,
    play,
    prepared,
    same,
    single_thread,
    steps_to,
    tasks_of,
)
from engine_models import data_for

from salf.aggregation.rules import Contributors, Corrected

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)


def with_poison(name: str) -> Subject:
    """The examples of client 1 hold infinite values."""
    inputs, labels = data_for(name, double=True)
    spoilt = inputs.clone()
    spoilt[5] = torch.inf
    return prepared(name)._replace(inputs=spoilt, labels=labels)


def poisoned_round(subject: Subject, depths: list[int], steps: int = 1) -> Round:
    layers = len(subject.layers)
    tasks = tasks_of(steps_to(depths, layers), [3] * len(depths), examples=5)
    tasks.batches[1, 0, 0] = 5
    assert tasks.batches.shape[1] == steps
    return Round(tasks, Contributors())


@pytest.mark.parametrize("name", ["mlp", "cnn", "vgg"])
@pytest.mark.parametrize("kind", ["fused", "stacked"])
def test_the_client_with_the_infinite_example_is_refused_and_no_other(kind: str, name: str) -> None:
    subject = with_poison(name)
    layers = len(subject.layers)
    played = poisoned_round(subject, [layers, layers, 1, 0])
    result, expected = play(subject.engine(kind), subject, played), play(subject.engine("plain"), subject, played)
    assert expected.accepted == [True, False, True, True]
    assert_close(result, expected, DOUBLE)


@pytest.mark.parametrize("kind", ["fused", "stacked"])
def test_an_infinite_example_of_a_client_that_conveys_nothing_harms_nobody(kind: str) -> None:
    subject = with_poison("mlp")
    played = poisoned_round(subject, [3, 0, 2])
    result = play(subject.engine(kind), subject, played)
    assert result.accepted == [True, True, True]
    assert_close(result, play(subject.engine("plain"), subject, played), DOUBLE)


@pytest.mark.parametrize("kind", ["fused", "stacked"])
def test_a_round_in_which_nobody_conveys_anything_changes_nothing(kind: str) -> None:
    subject = prepared("vgg")
    played = Round(tasks_of(steps_to([0, 0], len(subject.layers)), [2, 3]), Corrected())
    result = play(subject.engine(kind), subject, played)
    assert same(result.aggregated.state, subject.weights)
    assert result.accepted == [True, True]


@pytest.mark.parametrize("name", ["vgg", "tied", "frozen", "transformer"])
@pytest.mark.parametrize("kind", ["fused", "stacked"])
def test_the_users_model_the_data_and_the_global_weights_stay_as_they_are(kind: str, name: str) -> None:
    subject = prepared(name)
    model, parameters = copy.deepcopy(subject.model), dict(subject.model.named_parameters())
    kept = {key: value.clone() for key, value in subject.weights.items()}
    inputs, labels = subject.inputs.clone(), subject.labels.clone()
    engine = subject.engine(kind, SGD)
    layers = len(subject.layers)
    for depths in ([layers, 1, 2], [1, 1, layers]):
        play(engine, subject, Round(tasks_of(steps_to(depths, layers), [2, 3, 4]), Corrected()))
    assert same(subject.weights, kept)
    assert torch.equal(subject.inputs, inputs)
    assert torch.equal(subject.labels, labels)
    assert same(subject.model.state_dict(), model.state_dict())
    assert subject.model.training == model.training
    assert dict(subject.model.named_parameters()).keys() == parameters.keys()
    for key, parameter in subject.model.named_parameters():
        assert parameter is parameters[key]
        assert parameter.grad is None
        assert not parameter._post_accumulate_grad_hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())
