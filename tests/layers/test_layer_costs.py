"""Operations per layer are those of the textbook formulas."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from simulator_cases import MODELS, SHAPE, built, same_weights, values_of
from torch import Tensor, nn

from salf.errors import UnsuitableModel
from salf.layers.costs import measure_costs
from salf.layers.find import find_layers
from salf.values import LayerCosts


def costs_of(model: nn.Module, example: Any) -> LayerCosts:
    return measure_costs(model, example, find_layers(model, example))


@pytest.mark.parametrize("rows", [1, 7])
def test_linear_layers(rows: int) -> None:
    sizes = (50, 40, 30, 20)
    first, middle, last = (2 * a * b for a, b in pairwise(sizes))
    model = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))
    costs = costs_of(model, torch.randn(rows, 50))
    assert costs.forward == first + middle + last + 40 + 30  # a ReLU is one operation per element
    # The last two need the gradient of their weights and of their input, the first that of its weights alone.
    assert costs.backward == pytest.approx((first, 2 * middle, 2 * last), rel=0.15)
    for measured, products in zip(costs.backward, (first, 2 * middle, 2 * last), strict=True):
        assert measured >= products
    # 32-bit weights and biases.
    assert costs.layer_bytes == (4 * (50 * 40 + 40), 4 * (40 * 30 + 30), 4 * (30 * 20 + 20))


def test_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False),
        nn.Conv2d(8, 16, 5, stride=2, bias=False),
        nn.Flatten(),
        nn.Linear(16 * 16, 10, bias=False),
    )
    first = 2 * (2 * 3 * 3) * 8 * 11 * 11
    second = 2 * (8 * 5 * 5) * 16 * 4 * 4
    last = 2 * 256 * 10
    costs = costs_of(nn.Sequential(*model), torch.randn(3, 2, 11, 11))
    assert second == 2 * 200 * 256
    assert costs.forward == first + second + last
    # A product with the output's gradient costs what the forward pass costs; the picture needs no gradient.
    assert costs.backward == pytest.approx((first, 2 * second, 2 * last), rel=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_costs_add_up_per_example_and_the_backward_pass_is_twice_the_forward_pass(name: str) -> None:
    model = built(name)
    two, sixteen = torch.randn(2, *SHAPE), torch.randn(16, *SHAPE)
    before, state = values_of(model), torch.get_rng_state()
    few, many = costs_of(model, two), costs_of(model, sixteen)
    assert 1.0 < sum(many.backward) / many.forward < 2.6
    assert few.forward == pytest.approx(many.forward, rel=0.3)
    assert few.num_layers == len(find_layers(model, two))
    assert all(cost > 0 for cost in many.backward)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert sum(many.layer_bytes) == sum(tensor.nbytes for tensor in tensors.values())
    assert same_weights(before, values_of(model))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_batch_normalisation_costs_little_but_something() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64))
    costs = costs_of(model, torch.randn(8, 64))
    assert 0 < costs.backward[1] < 0.1 * costs.backward[0]
    # Its running mean and variance travel too, and an integer that counts batches.
    assert costs.layer_bytes[1] == 4 * 4 * 64 + 8


class TwoArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(30, 20, bias=False)
        self.right = nn.Linear(20, 10, bias=False)

    def forward(self, left: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {"scores": self.right(self.left(left) * scale)}


def test_examples_may_be_positional_or_named_arguments() -> None:
    model, inputs = TwoArguments(), torch.randn(4, 30)
    expected = costs_of(model, inputs)
    assert costs_of(model, (inputs, 1.0)) == expected
    assert costs_of(model, [inputs]) == expected
    assert costs_of(model, {"scale": 1.0, "left": inputs}) == expected
    assert expected.backward == pytest.approx((2 * 600, 4 * 200), rel=0.1)


def test_frozen_parameters_cost_no_gradient_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50), nn.Linear(50, 50))
    model[1].requires_grad_(False)
    costs = costs_of(model, torch.randn(4, 50))
    product = 2 * 50 * 50
    # What lies between two layers counts for the one that waits for it: the frozen layer's input gradient.
    assert costs.backward == pytest.approx((2 * product, 2 * product), rel=0.1)


def test_a_model_that_does_not_run_is_refused() -> None:
    model = nn.Linear(4, 2)
    layers = find_layers(model)
    with pytest.raises(UnsuitableModel, match=r"operations of Linear cannot be counted.*forward pass fails"):
        measure_costs(model, torch.randn(2, 3), layers)
