"""Building a model depends on its seed alone, and on nothing else leaves a trace."""

from pathlib import Path

import pytest
import torch
from torch import nn

from salf.errors import InvalidSetting
from salf.models import Cnn, Factory, Mlp, Model, ResidualNet, Transformer, Vgg, build

SHAPE = (3, 32, 32)
every_model = pytest.mark.parametrize(
    "model", [Mlp(), Cnn(), Vgg(), ResidualNet(), Transformer()], ids=lambda model: model.name
)


def same(first: nn.Module, second: nn.Module) -> bool:
    state = second.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())


@every_model
def test_the_seed_alone_determines_the_weights(model: Model) -> None:
    first = build(model, SHAPE, num_classes=10, seed=5)
    torch.rand(3)
    assert same(first, build(model, SHAPE, num_classes=10, seed=5))
    assert not same(first, build(model, SHAPE, num_classes=10, seed=6))


@every_model
def test_the_global_generator_is_untouched(model: Model) -> None:
    before = torch.random.get_rng_state()
    build(model, SHAPE, num_classes=10, seed=5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_global_generator_is_untouched_by_a_failure() -> None:
    before = torch.random.get_rng_state()
    with pytest.raises(InvalidSetting):
        build(Cnn(), (1, 2, 2), num_classes=10, seed=5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_large_seed_is_taken() -> None:
    seed = 2**63 - 1
    assert same(build(Mlp(), (4,), num_classes=2, seed=seed), build(Mlp(), (4,), num_classes=2, seed=seed))


def test_models_are_built_on_the_cpu_whatever_the_default_device() -> None:
    here = build(Mlp(), (4,), num_classes=2, seed=0)
    with torch.device("meta"):
        there = build(Mlp(), (4,), num_classes=2, seed=0)
    assert same(here, there)


def test_what_a_users_module_draws_when_imported_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "seeding.py"
    path.write_text("import torch\ntorch.manual_seed(3)\ntorch.rand(1)\ndef make(): return torch.nn.Linear(4, 2)\n")
    before = torch.random.get_rng_state()
    first, second = (build(Factory(f"{path}:make"), (4,), num_classes=2, seed=1) for _ in range(2))
    assert same(first, second)
    assert torch.equal(before, torch.random.get_rng_state())
