"""The plain engine gives what a naive client gives, bit for bit, and leaves no trace on anything."""

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import single_thread, training_of
from hypothesis import given, settings, strategies as st
from simulator_cases import (
    CLASSES,
    MODELS,
    SHAPE,
    built,
    same_weights,
    small_data,
    step_counts,
    train_naively,
    values_of,
)
from torch import Tensor, nn

from salf.engines import ClientTask, OptimizerSettings, PlainEngine
from salf.layers.find import Layers, find_layers
from salf.update import Update, check_update

DATA = small_data()
one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)
SGD = OptimizerSettings(lr=0.2)


@cache
def prepared(name: str) -> tuple[nn.Module, Layers]:
    model = built(name)
    return model, find_layers(model, DATA.inputs[:2])


def optimisations() -> st.SearchStrategy[OptimizerSettings]:
    decays = st.sampled_from([0.0, 0.02])
    momenta = st.sampled_from([0.0, 0.9])
    sgd = st.builds(OptimizerSettings, lr=st.just(0.2), momentum=momenta, weight_decay=decays)
    adaptive = st.builds(
        OptimizerSettings, optimizer=st.sampled_from(["adam", "adamw"]), lr=st.just(0.01), weight_decay=decays
    )
    return st.one_of(sgd, adaptive)


@st.composite
def tasks(draw: st.DrawFn, layers: int) -> ClientTask:
    local_steps = draw(st.integers(1, 4))
    whole = draw(st.integers(0, local_steps))
    depth = draw(st.integers(0, layers)) if whole < local_steps else 0
    size = draw(st.integers(2, 5))
    seed = draw(st.integers(0, 2**63 - 1))
    batches = np.random.default_rng(seed).integers(len(DATA), size=(local_steps, size))
    return ClientTask(0, np.array(step_counts(layers, whole, depth)), batches, draw(st.integers(1, 99)), seed)


def naive(model: nn.Module, layers: Layers, task: ClientTask, how: OptimizerSettings) -> Update:
    batches = [(DATA.inputs[chosen], DATA.labels[chosen]) for chosen in torch.as_tensor(task.batches)]
    return train_naively(model, layers, values_of(model), task.steps.tolist(), batches, how, task.seed)


def assert_same(update: Update, expected: Update) -> None:
    assert same_weights(update.deltas, expected.deltas)
    assert same_weights(update.buffers, expected.buffers)
    assert update.steps == expected.steps


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_it_equals_the_naive_client(name: str, data: st.DataObject) -> None:
    model, layers = prepared(name)
    how = data.draw(optimisations())
    cohort = data.draw(st.lists(tasks(len(layers)), min_size=1, max_size=3))
    engine = PlainEngine(training_of(model, layers, DATA.inputs, DATA.labels, how))
    weights = values_of(model)
    for task, update in zip(cohort, engine.updates(weights, cohort), strict=True):
        check_update(update, layers, weights)
        assert_same(update, naive(model, layers, task, how))
        assert update.num_examples == task.num_examples
    assert same_weights(weights, values_of(model))


def test_a_cohort_can_be_trained_again_from_other_weights() -> None:
    model, layers = prepared("residual")
    how = OptimizerSettings(optimizer="adam", lr=0.01)
    engine = PlainEngine(training_of(model, layers, DATA.inputs, DATA.labels, how))
    task = task_of(layers, whole=2, depth=3)
    list(engine.updates(values_of(model), [task]))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in moved.state_dict().values():
            tensor.add_(1)
    (update,) = engine.updates(values_of(moved), [task])
    assert_same(update, naive(moved, layers, task, how))


def task_of(layers: Layers, whole: int, depth: int, client: int = 0, seed: int = 7) -> ClientTask:
    batches = np.random.default_rng(seed).integers(len(DATA), size=(whole + 1, 4))
    return ClientTask(client, np.array(step_counts(len(layers), whole, depth)), batches, 10, seed)


class Noisy(nn.Module):
    """Dropout, frozen weights, a tied weight, an unused one, and buffers of every kind."""

    steps: Tensor
    scale: Tensor
    hidden: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(64, 12).requires_grad_(False)
        self.inner = nn.Linear(12, 12)
        self.norm = nn.BatchNorm1d(12)
        self.drop = nn.Dropout(0.5)
        self.again = nn.Linear(12, 12)
        self.again.weight = self.inner.weight
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(12, CLASSES)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.ones(12))
        self.register_buffer("hidden", torch.zeros(12), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.inner(self.frozen(x.flatten(1))))
        self.steps = self.steps + 1  # replaced, not written into
        self.scale = 0.9 * self.scale + 0.1 * inner.detach().abs().mean(0)
        self.hidden.add_(inner.detach().mean(0))
        scores: Tensor = self.head(self.again(self.drop(inner / self.scale + self.hidden)))
        return scores


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_it_equals_the_naive_client_on_an_awkward_model(data: st.DataObject) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Noisy()
    layers = find_layers(model, DATA.inputs[:2])
    how = data.draw(optimisations())
    cohort = data.draw(st.lists(tasks(len(layers)), min_size=2, max_size=3))
    engine = PlainEngine(training_of(model, layers, DATA.inputs, DATA.labels, how))
    for task, update in zip(cohort, engine.updates(values_of(model), cohort), strict=True):
        assert_same(update, naive(model, layers, task, how))


def test_a_client_without_a_finished_layer_conveys_nothing() -> None:
    model, layers = prepared("residual")
    engine = PlainEngine(training_of(model, layers, DATA.inputs, DATA.labels, SGD))
    (update,) = engine.updates(values_of(model), [task_of(layers, whole=0, depth=0)])
    assert (dict(update.deltas), update.steps, dict(update.buffers), update.num_examples) == ({}, {}, {}, 10)


@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_the_model_and_the_random_state_stay_as_they_were(name: str) -> None:
    model = built(name)
    layers = find_layers(model, DATA.inputs[:2])
    model.eval()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before, state = values_of(model), torch.get_rng_state()
    engine = PlainEngine(training_of(model, layers, DATA.inputs, DATA.labels, SGD))
    (update,) = engine.updates(values_of(model), [task_of(layers, whole=1, depth=2)])
    assert update.deltas
    assert same_weights(before, values_of(model))
    assert not any(module.training for module in model.modules())
    assert sum(parameter.grad is not None for parameter in model.parameters()) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(hooks_of(model))


def hooks_of(model: nn.Module) -> list[Mapping[int, Any]]:
    of_modules = [
        hooks
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    ]
    return of_modules + [parameter._post_accumulate_grad_hooks or {} for parameter in model.parameters()]


def test_dropout_is_the_clients_own_whoever_else_trains() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(SHAPE[1] * SHAPE[2], 16), nn.Dropout(0.5), nn.Linear(16, CLASSES))
    layers = find_layers(model, DATA.inputs[:2])
    weights = values_of(model)
    cohort = [task_of(layers, whole=2, depth=1, client=client, seed=client) for client in range(4)]

    def conveyed(order: list[int]) -> dict[int, Update]:
        engine = PlainEngine(training_of(model, layers, DATA.inputs, DATA.labels, SGD))
        torch.rand(len(order))  # the global generator has no say
        chosen = [cohort[client] for client in order]
        return dict(zip(order, engine.updates(weights, chosen), strict=True))

    together, apart, alone = conveyed([0, 1, 2, 3]), conveyed([3, 1, 0, 2]), conveyed([2])
    for client, update in together.items():
        assert_same(update, apart[client])
    assert_same(alone[2], together[2])
    other_seed = ClientTask(2, cohort[2].steps, cohort[2].batches, 10, seed=99)
    (differently,) = PlainEngine(training_of(model, layers, DATA.inputs, DATA.labels, SGD)).updates(
        weights, [other_seed]
    )
    assert not same_weights(differently.deltas, together[2].deltas)


def test_another_loss_can_be_minimised() -> None:
    model = nn.Linear(3, 2)
    inputs, targets = torch.randn(5, 3), torch.randn(5, 2)
    layers = find_layers(model, inputs)
    how = OptimizerSettings(lr=1.0)
    engine = PlainEngine(
        training_of(model, layers, inputs, targets, how, loss_of=lambda client: nn.functional.mse_loss)
    )
    task = ClientTask(0, np.array([1]), np.arange(5)[None], 5, 0)
    (update,) = engine.updates(values_of(model), [task])
    error = (inputs @ model.weight.T + model.bias - targets).detach()
    assert update.deltas["weight"].allclose(-2 / 10 * error.T @ inputs, rtol=1e-4, atol=1e-6)
    assert update.deltas["bias"].allclose(-2 / 10 * error.sum(0), rtol=1e-4, atol=1e-6)


def test_momentum_is_an_option_of_sgd_alone() -> None:
    with pytest.raises(ValueError, match="momentum is an option of sgd, not of adam"):
        OptimizerSettings(optimizer="adam", momentum=0.5)
