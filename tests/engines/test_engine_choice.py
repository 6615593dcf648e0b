"""Which engine computes a run, and that none is trusted with a model that it gets wrong."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_cases import Subject, prepared, same, single_thread, subject_of
from engine_models import data_for
from torch import Tensor, nn

from salf.aggregation.rules import Contributors, Corrected, InverseProbability, Memory, Rule
from salf.aggregation.sums import PartialSum
from salf.engines import FusedEngine, OptimizerSettings, Training, choose_engine
from salf.errors import InvalidSetting
from salf.layers.costs import measure_costs
from salf.layers.find import find_layers

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)


class Mixing(nn.Sequential):
    """Subtracts the mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = super().forward(x.flatten(1) - x.flatten(1).mean(0))  # type: ignore[no-untyped-call]
        return scores


class Branching(nn.Sequential):
    """Looks at the values before it decides what to do with them."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        scores: Tensor = super().forward(-flat if float(x.sum()) > 0 else flat)  # type: ignore[no-untyped-call]
        return scores


class Hiding(nn.Sequential):
    """Multiplies the scores by the size of the batch, which is no tensor."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = super().forward(x.flatten(1))  # type: ignore[no-untyped-call]
        return scores * x.shape[0]


def training_of(subject: Subject, local_steps: int = 1, how: OptimizerSettings | None = None) -> Training:
    costs = measure_costs(subject.model, subject.inputs[:2], subject.layers)
    return replace(subject.training(how or OptimizerSettings(), local_steps=local_steps), costs=costs)


def unsuitable(kind: str) -> Subject:
    inputs, labels = data_for("mlp")
    features = inputs[0].numel()
    parts = {"mixing": Mixing, "branching": Branching, "hiding": Hiding}
    make = parts.get(kind, nn.Sequential)
    drop = [nn.Flatten(), nn.Dropout(0.5)] if kind == "dropping" else []
    return subject_of(make(*drop, nn.Linear(features, 6), nn.ReLU(), nn.Linear(6, 4)), inputs, labels)


@pytest.mark.parametrize(
    ("name", "steps", "how", "rule", "engine"),
    [
        ("mlp", 1, OptimizerSettings(), Corrected(), "fused"),
        ("residual", 1, OptimizerSettings(momentum=0.9, weight_decay=0.1), Corrected(), "fused"),
        ("mlp", 1, OptimizerSettings(), InverseProbability(), "fused"),
        ("mlp", 1, OptimizerSettings(), Memory(), "fused"),
        ("residual", 1, OptimizerSettings(), Memory(), "stacked"),
        ("mlp", 1, OptimizerSettings(optimizer="adam"), Corrected(), "stacked"),
        ("mlp", 3, OptimizerSettings(), Corrected(), "stacked"),
        ("attention", 1, OptimizerSettings(), Contributors(), "fused"),
    ],
)
def test_the_choice_follows_from_the_run(
    name: str, steps: int, how: OptimizerSettings, rule: Rule, engine: str
) -> None:
    training = training_of(prepared(name, double=False), steps, how)
    assert choose_engine("auto", training, rule).name == engine


def test_large_models_train_for_several_steps_one_client_after_another() -> None:
    training = training_of(prepared("mlp", double=False), local_steps=2)
    large = replace(training, costs=replace(training.costs, forward=1e7))
    assert choose_engine("auto", large, Corrected()).name == "plain"
    assert choose_engine("stacked", large, Corrected()).name == "stacked"


@pytest.mark.parametrize("kind", ["mixing", "branching", "hiding", "dropping"])
def test_what_cannot_be_done_at_once_is_done_one_client_after_another(kind: str) -> None:
    training = training_of(unsuitable(kind))
    with pytest.warns(UserWarning, match="simulated one client after another") as warned:
        assert choose_engine("auto", training, Corrected()).name == "plain"
    assert len(warned) == 1
    with pytest.raises(InvalidSetting, match=r"engine is 'fused': .*; choose 'auto' or 'plain'"):
        choose_engine("fused", training, Corrected())
    assert choose_engine("plain", training, Corrected()).name == "plain"


@pytest.mark.parametrize(
    ("model", "steps", "rule", "message"),
    [
        ("mlp", 2, Corrected(), "computes one step, not client.local_steps = 2"),
        ("residual", 1, Memory(), "Memory needs each client's; choose"),
    ],
)
def test_an_engine_is_not_forced_upon_a_run_it_cannot_compute(model: str, steps: int, rule: Rule, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        choose_engine("fused", training_of(prepared(model, double=False), steps), rule)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_engine_that_is_wrong_in_one_layer_is_found_out(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = FusedEngine._layer_totals

    def wrong(*arguments: Any) -> list[PartialSum | None]:
        totals = right(*arguments)
        total = totals[place]
        assert total is not None
        totals[place] = replace(total, deltas={name: 1.01 * delta for name, delta in total.deltas.items()})
        return totals

    monkeypatch.setattr(FusedEngine, "_layer_totals", wrong)
    training = training_of(prepared("mlp", double=False))
    name = training.layers[place].name
    with pytest.raises(InvalidSetting, match=f"layer '{name}' differs from what the plain engine computes"):
        choose_engine("fused", training, Corrected())


@pytest.mark.parametrize("name", ["mlp", "vgg", "transformer"])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_check_leaves_no_trace(name: str, steps: int) -> None:
    subject = prepared(name, double=False)
    subject.model.eval()
    before, random = copy.deepcopy(subject.model.state_dict()), torch.get_rng_state()
    choose_engine("fused" if steps == 1 else "stacked", training_of(subject, steps), Corrected())
    assert same(before, subject.model.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module.training for module in subject.model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in subject.model.parameters())
    assert find_layers(subject.model, subject.inputs[:2]) == subject.layers
