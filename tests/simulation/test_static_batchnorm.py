"""Static BatchNorm: statistics of the global model, from all training examples, when it is tested."""

import pytest
import torch
from simulator_cases import small_data, values_of
from torch import nn

from salf.models import Vgg, build
from salf.simulation.evaluator import static_statistics

DATA = small_data(examples=90)


def network() -> nn.Sequential:
    first, second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3)
    return nn.Sequential(
        *(first, nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.9), second, nn.BatchNorm2d(4), nn.Flatten()),
        nn.Linear(64, 4),
    )


def test_they_are_the_averages_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salf.simulation.evaluator._STATISTICS_BATCH", 40)
    model, order = network(), torch.randperm(90)
    found = static_statistics(model, model.state_dict(), DATA.inputs, order)
    means, variances = [], []
    with torch.no_grad():
        for batch in order.reshape(3, 30):  # three batches of at most 40
            x = model[0](DATA.inputs[batch])
            x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
            x = model[4](x.relu())
            means.append(x.mean((0, 2, 3)))
            variances.append(x.var((0, 2, 3)))
    assert found["5.running_mean"].allclose(torch.stack(means).mean(0), atol=1e-5)
    assert found["5.running_var"].allclose(torch.stack(variances).mean(0), rtol=1e-4)
    assert found["1.num_batches_tracked"] == 3
    assert found.keys() == {name for name, _ in model.named_buffers()}


def test_old_statistics_do_not_matter_and_the_model_does_not_notice() -> None:
    model, order = network(), torch.arange(90)
    before = values_of(model)
    found = static_statistics(model, model.state_dict(), DATA.inputs, order)
    spoilt = before | {name: value + 5 for name, value in before.items() if "running" in name}
    again = static_statistics(model, spoilt, DATA.inputs, order)
    assert all(again[name].equal(value) for name, value in found.items())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert model[1].momentum == 0.1


def test_a_model_without_statistics_has_none() -> None:
    assert static_statistics(nn.Linear(4, 2), {}, DATA.inputs, torch.arange(90)) == {}
    assert static_statistics(nn.BatchNorm1d(4, track_running_stats=False), {}, DATA.inputs, torch.arange(90)) == {}


def test_evaluation_on_the_examples_of_one_batch_is_then_as_in_training() -> None:
    model = build(Vgg("vgg11"), (3, 32, 32), num_classes=10, seed=0)
    inputs = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = nn.Sequential(*list(model.children())[:4]).train()(inputs)
    model.load_state_dict(model.state_dict() | static_statistics(model, model.state_dict(), inputs, torch.arange(16)))
    with torch.no_grad():
        found = nn.Sequential(*list(model.children())[:4]).eval()(inputs)
    # Statistics hold the unbiased variance, training divides by the biased one.
    assert found.allclose(expected, atol=0.05)
