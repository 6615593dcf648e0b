"""What the models refuse, and how they are read from a config file."""

import dataclasses
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from salf.errors import InvalidSetting
from salf.models import Cnn, Factory, Mlp, Model, ResidualNet, Transformer, Vgg, build

ADAPTER: TypeAdapter[Model] = TypeAdapter(Model)
CONFIGS: list[tuple[dict[str, Any], Model]] = [
    ({"name": "mlp", "hidden": [64, 8]}, Mlp(hidden=(64, 8))),
    ({"name": "cnn", "channels": [4], "padding": 2}, Cnn(channels=(4,), padding=2)),
    ({"name": "vgg11"}, Vgg("vgg11")),
    ({"name": "vgg19"}, Vgg("vgg19")),
    ({"name": "residual", "blocks": [2, 2]}, ResidualNet(blocks=(2, 2))),
    ({"name": "transformer", "patch": 2}, Transformer(patch=2)),
    ({"name": "factory", "call": "nets:make"}, Factory("nets:make")),
]


@pytest.mark.parametrize(("config", "model"), CONFIGS)
def test_a_config_names_the_model_and_its_differences(config: dict[str, Any], model: Model) -> None:
    assert ADAPTER.validate_python(config) == model
    assert ADAPTER.validate_json(ADAPTER.dump_json(model)) == model


@pytest.mark.parametrize(
    "config",
    [
        {"name": "vgg12"},
        {"name": "mlp", "hiden": [3]},
        {"name": "mlp", "hidden": [32, 0]},
        {"name": "mlp", "hidden": [-1]},
        {"name": "mlp", "hidden": [32.0]},
        {"name": "mlp", "hidden": ["32"]},
        {"name": "mlp", "hidden": [True]},
        {"name": "cnn", "channels": []},
        {"name": "cnn", "channels": [0]},
        {"name": "cnn", "kernel": 0},
        {"name": "cnn", "padding": -1},
        {"name": "cnn", "hidden": [0]},
        {"name": "residual", "blocks": []},
        {"name": "residual", "blocks": [1, 0]},
        {"name": "residual", "width": 0},
        {"name": "transformer", "depth": 0},
        {"name": "transformer", "heads": 0},
        {"name": "transformer", "patch": 0},
        {"name": "factory"},
    ],
)
def test_wrong_fields_are_refused_by_name(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(config)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match=r"model\.heads is 3.*model\.width 32; choose a width"):
        ADAPTER.validate_python({"name": "transformer", "heads": 3})


def test_models_are_values() -> None:
    assert hash(Mlp()) == hash(Mlp(hidden=(32, 16)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(Mlp(), "hidden", (1,))  # noqa: B010 (the type checker refuses the plain assignment)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (
            Cnn(),
            (1, 8, 8),
            r"model\.kernel is 5 and model\.padding 0, .* convolution 2 .* nothing of the 2×2 input; choose",
        ),
        (Cnn(), (1, 28, 4), r"model\.kernel is 5 .* convolution 1 .* nothing of the 28×4"),
        (Cnn(channels=(4, 4, 4, 4), kernel=3, padding=1), (1, 8, 8), r"convolution 4 .* 1×1 .* fewer model\.channels"),
        (Vgg("vgg13"), (3, 32, 31), r"model\.name is 'vgg13', .* 32×31; choose 'cnn' or 'residual', .* 32×32"),
        (ResidualNet(), (1, 8, 7), r"model\.blocks has 3 stages, .* 8×8, but the images are 8×7; choose fewer"),
        (Transformer(patch=4), (1, 8, 6), r"model\.patch is 4, which does not divide the images' 8×6; choose"),
        (Transformer(patch=3), (1, 8, 9), r"model\.patch is 3"),
    ],
)
def test_images_that_do_not_fit_are_refused(model: Model, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        build(model, shape, num_classes=10, seed=0)


@pytest.mark.parametrize("model", [Cnn(), Vgg(), ResidualNet(), Transformer()], ids=lambda model: model.name)
@pytest.mark.parametrize("shape", [(784,), (28, 28), (1, 1, 28, 28)])
def test_networks_for_images_refuse_other_examples(model: Model, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidSetting, match=rf"model\.name is '{model.name}', which takes images .* choose 'mlp'"):
        build(model, shape, num_classes=10, seed=0)


@pytest.mark.parametrize("model", [Mlp(), Cnn(), Vgg(), ResidualNet(), Transformer()], ids=lambda model: model.name)
@pytest.mark.parametrize("shape", [(), (1, 0, 32)])
def test_empty_examples_are_refused(model: Model, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidSetting, match=rf"model\.name is '{model.name}', which cannot take examples of shape"):
        build(model, shape, num_classes=10, seed=0)


@pytest.mark.parametrize("model", [Mlp(), Cnn(), Vgg(), ResidualNet(), Transformer()], ids=lambda model: model.name)
@pytest.mark.parametrize("num_classes", [1, 0, -1])
def test_one_class_is_refused(model: Model, num_classes: int) -> None:
    with pytest.raises(InvalidSetting, match=rf"num_classes is {num_classes}, .* at least 2; give"):
        build(model, (1, 32, 32), num_classes=num_classes, seed=0)
