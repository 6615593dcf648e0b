"""An engine changes nothing that it is given: neither model nor data, neither weights nor random state."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import DOUBLE, HEAVY, Round, assert_close, play, same, single_thread, steps_to, subject_of, tasks_of
from engine_models import MODELS, built, data_for
from torch import Tensor, nn

from salf.aggregation.rules import Contributors

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)

KINDS = ["plain", "fused", "stacked"]


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}


def hooks_of(model: nn.Module) -> list[list[int]]:
    return [
        list(hooks)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    ] + [list(parameter._post_accumulate_grad_hooks or ()) for parameter in model.parameters()]


def state_of(model: nn.Module) -> Mapping[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "trained": [parameter.requires_grad for parameter in model.parameters()],
        "storages": [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())],
        "classes": [type(module) for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": hooks_of(model),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cnn", "vgg", "frozen", "tied", "attention", "factored"])
def test_the_users_model_stays_as_it_was(kind: str, name: str) -> None:
    model, (inputs, labels) = built(MODELS[name]), data_for(name)
    inputs, labels = inputs.clone(), labels.clone()
    model.eval()
    next(model.children()).train()
    first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    first.grad = torch.full_like(first, 3)
    first.register_post_accumulate_grad_hook(lambda parameter: None)  # type: ignore[no-untyped-call]
    model.register_forward_hook(lambda module, given, result: None)
    before, state, data = values(model), state_of(model), (inputs.clone(), labels.clone())
    subject = subject_of(model, inputs, labels)
    weights = {key: value.clone() for key, value in subject.weights.items()}
    addresses = [value.data_ptr() for value in subject.weights.values()]
    layers = len(subject.layers)
    tasks = tasks_of(steps_to(range(layers + 1), layers), [3] * (layers + 1))
    batches = tasks.batches.copy()
    engine = subject.engine(kind, HEAVY)
    for _ in range(2):
        assert all(play(engine, subject, Round(tasks, Contributors())).accepted)
    assert same(before, values(model))
    assert state == state_of(model)
    assert torch.equal(first.grad, torch.full_like(first, 3))
    assert sum(parameter.grad is not None for parameter in model.parameters()) == 1
    assert same(weights, subject.weights)
    assert addresses == [value.data_ptr() for value in subject.weights.values()]
    assert not any(value.requires_grad for value in subject.weights.values())
    assert torch.equal(inputs, data[0])
    assert torch.equal(labels, data[1])
    assert np.array_equal(tasks.batches, batches)


@pytest.mark.parametrize("kind", KINDS)
def test_random_states_stay_as_they_were(kind: str) -> None:
    model, (inputs, labels) = built(MODELS["vgg"]), data_for("vgg")
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    subject = subject_of(model, inputs, labels)
    play(subject.engine(kind), subject, Round(tasks_of(steps_to([5, 3], 5), [3, 3]), Contributors()))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (str(np.random.get_state()), random.getstate())  # noqa: NPY002


@pytest.mark.parametrize("kind", ["fused", "stacked"])
def test_a_model_that_changes_later_does_not_change_the_engine(kind: str) -> None:
    model, (inputs, labels) = built(MODELS["vgg"], double=True), data_for("vgg", double=True)
    subject = subject_of(model, inputs, labels)
    played = Round(tasks_of(steps_to([5, 3], 5), [3, 3]), Contributors())
    engine, expected = subject.engine(kind), play(subject.engine("plain"), subject, played)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    assert_close(play(engine, subject, played), expected, DOUBLE)


@pytest.mark.parametrize("kind", ["fused", "stacked"])
def test_a_result_stays_as_it_is_when_the_next_round_is_computed(kind: str) -> None:
    subject = subject_of(built(MODELS["vgg"]), *data_for("vgg"))
    played = Round(tasks_of(steps_to([5, 3], 5), [3, 3]), Contributors())
    engine = subject.engine(kind)
    first = play(engine, subject, played).aggregated.state
    kept = {name: value.clone() for name, value in first.items()}
    play(engine, subject._replace(weights=first), played)
    assert same(first, kept)
