"""Accuracy and loss are those of the naive loop, whatever the batches, and the model does not notice."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from simulator_cases import built, same_weights, small_data, values_of
from torch import Tensor, nn

from salf.simulation import evaluator as evaluation
from salf.simulation.evaluator import evaluate

DATA = small_data()


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_it_equals_one_example_at_a_time(name: str) -> None:
    model = built(name).eval()
    with torch.no_grad():
        scores = [model(each[None])[0].double() for each in DATA.inputs]
    hits = sum(int(score.argmax()) == int(label) for score, label in zip(scores, DATA.labels, strict=True))
    losses = [float(score.logsumexp(0) - score[int(label)]) for score, label in zip(scores, DATA.labels, strict=True)]
    accuracy, loss = evaluate(model, DATA.inputs, DATA.labels)
    assert accuracy == hits / len(DATA)
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 50), examples=st.integers(1, 50))
def test_batches_make_no_difference(batch: int, examples: int) -> None:
    model = built("mlp")
    inputs, labels = DATA.inputs[:examples], DATA.labels[:examples]
    accuracy, loss = evaluate(model, inputs, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("salf.simulation.evaluator._BATCH", batch)
        again = evaluate(model, inputs, labels)
    assert again[0] == accuracy
    assert again[1] == pytest.approx(loss, rel=1e-5)


class Wasteful(nn.Module):
    """Notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        self.modes.append(self.training or torch.is_grad_enabled())
        return torch.zeros(len(x), 3)


def test_it_goes_through_the_data_in_batches_without_gradients() -> None:
    model = Wasteful()
    accuracy, loss = evaluate(model, torch.zeros(5000, 1), torch.zeros(5000, dtype=torch.int64))
    assert model.sizes == [2048, 2048, 904]
    assert model.modes == [False] * 3
    assert accuracy == 1.0
    assert loss == pytest.approx(math.log(3))


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_state_stay(training: bool) -> None:
    model = built("residual").train(training)
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    frozen.eval()
    before = values_of(model)
    modes = [module.training for module in model.modules()]
    evaluate(model, DATA.inputs, DATA.labels)
    assert [module.training for module in model.modules()] == modes
    assert same_weights(values_of(model), before)
    assert not frozen.training


def test_modes_stay_also_when_it_fails() -> None:
    model = built("mlp")
    with pytest.raises(RuntimeError):
        evaluate(model, torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64))
    assert all(module.training for module in model.modules())


def test_a_loss_that_is_not_finite_is_returned_as_it_is() -> None:
    scores = torch.tensor([[math.inf, 0.0], [math.nan, 1.0]])
    _, loss = evaluation.evaluate(nn.Identity(), scores, torch.tensor([0, 1]))
    assert math.isnan(loss)
