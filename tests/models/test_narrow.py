"""A narrowed network is the wide one with rows and columns cut off, and what cannot be cut is refused."""

import math
import re

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn import functional

from salf.errors import InvalidSetting
from salf.models import Cnn, Mlp, ResidualNet, Transformer, Vgg, build, narrow, prefixes
from salf.models.narrow import Scale

IMAGES = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
WIDTHS = st.floats(0.01, 1.0)


def mlp() -> nn.Module:
    return build(Mlp(hidden=(7, 5)), (2, 8, 8), num_classes=4, seed=0)


def cnn() -> nn.Module:
    return build(Cnn(channels=(5, 3), kernel=3, padding=1, hidden=(6,)), (2, 8, 8), num_classes=4, seed=0)


def cut(model: nn.Module, name: str, *sizes: int) -> tuple[Tensor, Tensor]:
    """The first rows and columns of a layer's weight, and the first values of its bias."""
    weight, bias = model.get_parameter(f"{name}.weight"), model.get_parameter(f"{name}.bias")
    return weight[tuple(map(slice, sizes))], bias[: sizes[0]]


@settings(max_examples=20, deadline=None)
@given(width=WIDTHS)
def test_a_narrowed_mlp_computes_with_the_first_rows_and_columns(width: float) -> None:
    wide, (first, second) = mlp(), (math.ceil(width * size) for size in (7, 5))
    x = IMAGES.flatten(1)
    for name, sizes in {"fc1": (first, 128), "fc2": (second, first)}.items():
        x = functional.linear(x, *cut(wide, name, *sizes)).relu()
    x = functional.linear(x, *cut(wide, "fc3", 4, second))
    assert narrow(wide, width).eval()(IMAGES).equal(x)
    assert narrow(wide, width, scaler=False)(IMAGES).equal(x)


@settings(max_examples=20, deadline=None)
@given(width=WIDTHS)
def test_flattening_a_narrowed_cnn_keeps_whole_channels(width: float) -> None:
    wide, (first, second, hidden) = cnn(), (math.ceil(width * size) for size in (5, 3, 6))
    x = IMAGES
    for name, sizes in {"conv1": (first, 2), "conv2": (second, first)}.items():
        x = functional.max_pool2d(functional.conv2d(x, *cut(wide, name, *sizes), padding=1).relu(), 2)
    x = functional.linear(x.flatten(1), *cut(wide, "fc1", hidden, second * 4)).relu()
    x = functional.linear(x, *cut(wide, "fc2", 4, hidden))
    assert narrow(wide, width, scaler=False)(IMAGES).equal(x)


def test_the_scaler_multiplies_each_hidden_layer_in_training_alone() -> None:
    wide = mlp()
    sub = narrow(wide, 0.25).train()
    x = 4 * functional.linear(IMAGES.flatten(1), *cut(wide, "fc1", 2, 128))
    x = 4 * functional.linear(x.relu(), *cut(wide, "fc2", 2, 2))
    assert sub(IMAGES).equal(functional.linear(x.relu(), *cut(wide, "fc3", 4, 2)))
    assert sum(isinstance(module, Scale) for module in sub.modules()) == 2
    assert not any(isinstance(module, Scale) for module in narrow(wide, 1.0).modules())
    # A width that rounds to every channel is scaled too, by the requested width.
    assert sum(isinstance(module, Scale) for module in narrow(wide, 0.99).modules()) == 2


def test_scalers_come_before_batch_normalisation() -> None:
    sub = narrow(build(Vgg("vgg11"), (3, 32, 32), num_classes=10, seed=0), 0.5)
    block = sub.get_submodule("block3")
    assert [type(module) for module in block.children()] == [nn.Conv2d, Scale, nn.BatchNorm2d, nn.ReLU]


@pytest.mark.parametrize("width", [1.0, 0.5, 0.0625])
def test_parameters_keep_their_names_and_are_prefixes(width: float) -> None:
    wide = build(Vgg("vgg11"), (3, 32, 32), num_classes=10, seed=0)
    own = dict(narrow(wide, width).named_parameters())
    whole = {name: parameter.detach() for name, parameter in wide.named_parameters()}
    assert own.keys() == whole.keys()
    assert all(own[name].equal(view) for name, view in prefixes(whole, own).items())
    assert own["block8.conv.weight"].shape == (math.ceil(512 * width),) * 2 + (3, 3)
    assert own["block8.norm.bias"].shape == (math.ceil(512 * width),)
    assert own["fc.weight"].shape == (10, math.ceil(512 * width))
    assert own["block1.conv.weight"].shape == (math.ceil(64 * width), 3, 3, 3)


def test_batch_normalisation_becomes_static() -> None:
    wide = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    sub = narrow(wide, 0.5, scaler=False)
    assert not list(sub.buffers())
    assert len(list(wide.buffers())) == 3
    x = torch.randn(5, 4)
    hidden = functional.linear(x, *cut(wide, "0", 3, 4))
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    assert sub.eval()(x).allclose(functional.linear(hidden.relu(), *cut(wide, "3", 2, 3)), atol=1e-5)


def test_normalised_inputs_and_repeated_activations_stay() -> None:
    activation = nn.ReLU()
    wide = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 8, bias=False), activation, nn.Flatten())
    wide.extend([nn.BatchNorm1d(4, affine=False), nn.Linear(4, 4), activation, nn.Linear(4, 3)])
    sub = narrow(wide, 0.5)
    assert [type(module) for module in sub].count(nn.ReLU) == 2
    shapes = {name: tuple(value.shape) for name, value in sub.named_parameters()}
    inputs, outputs = {"0.weight": (2,), "0.bias": (2,), "1.weight": (2, 2, 8, 8)}, {"7.weight": (3, 2), "7.bias": (3,)}
    assert shapes == inputs | {"5.weight": (2, 2), "5.bias": (2,)} | outputs
    assert sub(IMAGES).shape == (3, 3)


def test_the_wide_model_is_left_alone() -> None:
    wide = mlp()
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    narrowed = narrow(wide, 0.5)
    with torch.no_grad():
        for parameter in narrowed.parameters():
            parameter.zero_()
    assert all(value.equal(before[name]) for name, value in wide.state_dict().items())


TIED = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("model", "problems"),
    [
        (ResidualNet(width=3, blocks=(1,)).build((1, 8, 8), 3), "'stage1.0' is a _ResidualBlock"),
        (Transformer(width=8, depth=1, heads=2, patch=4).build((1, 8, 8), 3), "nothing is an nn.Sequential"),
        (nn.Linear(4, 2), "nothing is an nn.Sequential"),
        (
            nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2)),
            "'0' is a convolution in 2 groups, '1' is a GroupNorm",
        ),
        (nn.Sequential(TIED, nn.ReLU(), TIED), "it uses some parameters twice"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "its last parameters are not those of a linear layer"),
        (nn.Sequential(nn.ReLU()), "its last parameters are not those of a linear layer"),
    ],
    ids=["residual", "transformer", "no chain", "grouped", "tied", "norm last", "nothing to narrow"],
)
def test_other_models_are_refused_with_the_place_and_the_remedy(model: nn.Module, problems: str) -> None:
    with pytest.raises(InvalidSetting, match=f"method.name is 'heterofl'.*{re.escape(problems)}; choose model.name"):
        narrow(model, 0.5)
