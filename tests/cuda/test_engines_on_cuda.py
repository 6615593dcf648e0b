"""On a CUDA device each engine computes what the plain engine computes on the CPU."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from cuda_cases import (
    MODELS,
    NEEDS_CUDA,
    QUIET,
    assert_states_close,
    changes,
    cuda,
    full_precision,
    pictures,
    play,
    subject,
    tasks_for,
)
from engine_cases import training_of
from torch import Tensor, nn

from salf.aggregation.aggregation import Aggregation
from salf.aggregation.rules import Contributors, Corrected, InverseProbability, Memory, Rule
from salf.engines import FusedEngine, OptimizerSettings, PlainEngine
from salf.engines.accelerator import CPU
from salf.engines.fused.pooling import FastPool
from salf.errors import InvalidUpdate, UnsuitableModel
from salf.layers.find import find_layers
from salf.update import Update, all_finite, check_update

pytestmark = [NEEDS_CUDA, QUIET]
exact = pytest.fixture(autouse=True)(full_precision)
SGD = OptimizerSettings(lr=0.2, weight_decay=0.05)
HEAVY = OptimizerSettings(lr=0.1, momentum=0.9)
ADAM = OptimizerSettings(optimizer="adam", lr=0.01)
RULES: dict[str, Rule] = {"corrected": Corrected(), "inverse-probability": InverseProbability(), "memory": Memory()}
CHAINS = ("mlp", "cnn")  # for these alone the fused engine computes each client's own update


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["plain", "fused", "stacked"])
def test_one_step_is_that_of_the_plain_engine_on_the_cpu(kind: str, name: str, rule: str) -> None:
    if kind == "fused" and rule == "memory" and name not in CHAINS:
        pytest.skip("the fused engine computes sums of such models")
    here, there = subject(name, CPU), subject(name, cuda())
    expected, found = play("plain", here, RULES[rule], SGD), play(kind, there, RULES[rule], SGD)
    assert all(value.device == cuda() for value in found.state.values())
    assert found.contributors == expected.contributors
    assert_states_close(found.state, expected.state, 1e-4)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["plain", "fused", "stacked"])
def test_in_double_precision_the_changes_agree_to_many_digits(kind: str, name: str, full: bool) -> None:
    here, there = subject(name, CPU, double=True), subject(name, cuda(), double=True)
    expected = play("plain", here, Corrected(), SGD, full=full)
    found = play(kind, there, Corrected(), SGD, full=full)
    before, moved = here.weights, changes(found.state, there.weights, there.layers)
    assert_states_close(moved, changes(expected.state, before, here.layers), 1e-8)


@pytest.mark.parametrize("how", [HEAVY, ADAM], ids=["momentum", "adam"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["plain", "stacked"])
def test_several_local_steps_are_those_of_the_plain_engine_on_the_cpu(
    kind: str, name: str, how: OptimizerSettings
) -> None:
    here, there = subject(name, CPU, double=True), subject(name, cuda(), double=True)
    expected, found = play("plain", here, Corrected(), how, 2), play(kind, there, Corrected(), how, 2)
    assert found.contributors == expected.contributors
    assert_states_close(found.state, expected.state, 1e-6)


@pytest.mark.parametrize("kind", ["fused", "stacked"])
def test_work_cut_in_small_parts_gives_the_same(kind: str) -> None:
    there = subject("cnn", cuda())
    whole, parts = (play(kind, there, Corrected(), SGD, memory_bytes=limit) for limit in (2**28, 2**13))
    assert_states_close(parts.state, whole.state, 1e-5)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.drop(self.body(x.flatten(1)).relu()))
        return scores


def dropped(seed: int) -> Mapping[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Dropping()
    inputs, labels = pictures()
    layers = find_layers(model, inputs[:2])
    model = model.to(cuda())
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    engine = PlainEngine(training_of(model, layers, inputs.to(cuda()), labels.to(cuda()), SGD))
    running = Aggregation(weights, layers, Contributors())
    engine.train_cohort(weights, replace(tasks_for(layers), seed=seed), running)
    return running.finish().state


def test_the_seed_governs_what_the_device_draws_and_nothing_else_is_touched() -> None:
    before = torch.cuda.get_rng_state(cuda())
    first = dropped(seed=1)
    assert torch.equal(before, torch.cuda.get_rng_state(cuda()))
    torch.rand(5, device=cuda())
    again, other = dropped(seed=1), dropped(seed=2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_model_that_draws_on_the_device_is_not_fused() -> None:
    inputs, labels = (values.to(cuda()) for values in pictures())
    model = Dropping()
    layers = find_layers(model, pictures()[0][:2])
    before = torch.cuda.get_rng_state(cuda())
    with pytest.raises(UnsuitableModel, match="it draws random numbers"):
        FusedEngine(training_of(model.to(cuda()), layers, inputs, labels, SGD))
    assert torch.equal(before, torch.cuda.get_rng_state(cuda()))


@pytest.mark.parametrize("side", [2, 3])
def test_pooling_has_the_gradient_of_torchs_own_on_the_cpu(side: int) -> None:
    pool = FastPool(nn.MaxPool2d(side))
    x = torch.randint(0, 3, (5, 3, 10, 11), generator=torch.Generator().manual_seed(side)).float()  # with ties
    here = x.clone().requires_grad_()
    expected = nn.functional.max_pool2d(here, side)
    grad_output = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    expected.backward(grad_output)  # type: ignore[no-untyped-call]
    there = x.to(cuda())
    assert torch.equal(pool(there).cpu(), expected.detach())
    assert here.grad is not None
    assert torch.equal(pool.grad_input(there, pool(there), grad_output.to(cuda())).cpu(), here.grad)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found_on_the_device(wrong: float) -> None:
    good, bad = torch.ones(3, 4, device=cuda()), torch.ones(5, device=cuda())
    bad[2] = wrong
    assert all_finite([good, good.half(), good.long()])
    assert all_finite([good, torch.full((4,), 3e38, device=cuda())])  # whose norm is beyond the type
    assert not all_finite([good, bad])
    own = subject("mlp", cuda())
    name = own.layers[-1].parameters[-1]
    deltas = {name: torch.zeros_like(own.weights[name]) for layer in own.layers for name in layer.parameters}
    check_update(Update(deltas, 1, 1), own.layers, own.weights)
    deltas[name][0] = wrong
    with pytest.raises(InvalidUpdate, match=f"'{name}' holds values that are not finite"):
        check_update(Update(deltas, 1, 1), own.layers, own.weights)
