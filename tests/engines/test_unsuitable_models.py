"""Models with which the fast engines cannot be trusted are refused, and wrong results are found out."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_cases import SGD, prepared, single_thread, subject_of, training_of
from engine_models import MODELS, SHAPE, Apply, built, data_for
from torch import Tensor, nn
from torch.nn import functional

from salf.aggregation.rules import Corrected, InverseProbability
from salf.aggregation.sums import PartialSum
from salf.engines import FusedEngine, OptimizerSettings, StackedEngine, Training, choose_engine
from salf.engines.choice import EngineName
from salf.engines.fused.client_norm import ClientNorm
from salf.errors import InvalidSetting
from salf.layers.find import find_layers
from salf.update import Update

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)


def training(model: nn.Module, *, how: OptimizerSettings = SGD, local_steps: int = 1) -> Training:
    inputs, labels = data_for("mlp")
    layers = find_layers(model, inputs[:2].clone())
    return training_of(model, layers, inputs, labels, how, local_steps=local_steps)


class Around(nn.Module):
    """Something between a layer and three others."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Linear(SHAPE[0] * SHAPE[1] * SHAPE[2], 6)
        self.inner = inner
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.inner(self.stem(x.flatten(1))))
        return scores


class Counted(nn.Linear):
    """Counts how often it is called, in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return super().forward(input)


def branching(x: Tensor) -> Tensor:
    return x if bool((x.detach() > 0).all()) else 2 * x


def normed(x: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, training=True)


def twice(module: nn.Module) -> nn.Module:
    return nn.Sequential(module, nn.Tanh(), module)


UNSUITABLE: dict[str, tuple[list[str], Callable[[], nn.Module]]] = {
    "dropout": (["fused", "stacked"], lambda: nn.Dropout(0.5)),
    "branching": (["fused", "stacked"], lambda: Apply(branching)),
    "subtracted mean": (["fused"], lambda: Apply(lambda x: x - x.mean(0))),
    "one norm for all": (["fused"], lambda: Apply(lambda x: x / x.norm())),
    "softmax over rows": (["fused"], lambda: Apply(lambda x: x.softmax(0))),
    "rolled rows": (["fused"], lambda: Apply(lambda x: x + x.roll(1, 0))),
    "rows with rows": (["fused"], lambda: Apply(lambda x: x @ x.t() @ x)),
    "first row": (["fused"], lambda: Apply(lambda x: x + x[:1])),
    "functional norm": (["fused"], lambda: Apply(normed)),
    "counting": (["fused", "stacked"], Counted),
    "norm called twice": (["fused"], lambda: twice(nn.BatchNorm1d(6))),
    "cumulative norm": (["stacked"], lambda: nn.BatchNorm1d(6, momentum=None)),
}
CASES = [(name, kind) for name, (kinds, _) in UNSUITABLE.items() for kind in kinds]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_unsuitable_model_is_simulated_client_by_client_with_one_warning(name: str, kind: EngineName) -> None:
    model = built(lambda: Around(UNSUITABLE[name][1]()))
    with pytest.warns(UserWarning, match="simulated one client after another") as warned:
        engine = choose_engine("auto", training(model, local_steps=1 if kind == "fused" else 2), Corrected())
    assert engine.name == "plain"
    (warning,) = warned
    assert "simulated one client after another, which is slow: Around cannot be trained" in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_engine("plain", training(model), Corrected()).name == "plain"


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_unsuitable_model_is_refused_by_an_engine_asked_for_by_name(name: str, kind: EngineName) -> None:
    model = built(lambda: Around(UNSUITABLE[name][1]()))
    with pytest.raises(
        InvalidSetting, match=f"engine is '{kind}': Around cannot be trained .*choose 'auto' or 'plain'"
    ):
        choose_engine(kind, training(model), Corrected())


def test_weighing_layers_apart_needs_operations_of_one_layer_each() -> None:
    subject = prepared("tied", double=False)
    settings = subject.training()
    assert choose_engine("fused", settings, Corrected()).name == "fused"
    with pytest.raises(InvalidSetting, match="belongs to several layers"):
        choose_engine("fused", settings, InverseProbability())
    with pytest.warns(UserWarning, match="belongs to several layers"):
        assert choose_engine("auto", settings, InverseProbability()).name == "plain"


NETWORK = "vgg"
LAYERS = range(5)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", ["fused", "stacked"])
def test_an_engine_that_is_one_percent_wrong_in_one_layer_is_found_out(
    kind: EngineName, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = training(built(MODELS[NETWORK]))
    names = settings.layers[layer].parameters
    if kind == "fused":
        totals = FusedEngine._layer_totals

        def wrong_totals(*arguments: Any) -> list[PartialSum | None]:
            return [
                right
                and replace(right, deltas={name: spoilt(name, value, names) for name, value in right.deltas.items()})
                for right in totals(*arguments)
            ]

        monkeypatch.setattr(FusedEngine, "_layer_totals", wrong_totals)
    else:
        update = StackedEngine._update

        def wrong_update(*arguments: object, **named: object) -> Update:
            right = update(*arguments, **named)  # type: ignore[arg-type]
            return replace(right, deltas={name: spoilt(name, value, names) for name, value in right.deltas.items()})

        monkeypatch.setattr(StackedEngine, "_update", wrong_update)
    with pytest.raises(
        InvalidSetting, match=f"layer '{settings.layers[layer].name}' differs from what the plain engine"
    ):
        choose_engine(kind, settings, Corrected())


def spoilt(name: str, value: Tensor, names: tuple[str, ...]) -> Tensor:
    return value * 1.01 if name in names else value


def test_an_engine_with_wrong_statistics_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = ClientNorm.sums
    monkeypatch.setattr(
        ClientNorm, "sums", lambda *arguments: {name: 1.01 * value for name, value in sums(*arguments).items()}
    )
    with pytest.raises(InvalidSetting, match="differs from what the plain engine"):
        choose_engine("fused", training(built(MODELS[NETWORK])), Corrected())


def test_a_model_that_draws_random_numbers_leaves_the_random_state_alone_when_it_is_refused() -> None:
    model = built(lambda: Around(nn.Dropout(0.5)))
    settings, state = training(model), torch.get_rng_state()
    for kind in ("fused", "stacked"):
        with pytest.raises(InvalidSetting, match="cannot be trained"):
            choose_engine(kind, settings, Corrected())
        assert torch.equal(torch.get_rng_state(), state)


def test_the_choice_can_be_made_with_data_of_two_examples() -> None:
    model = built(MODELS["mlp"])
    subject = subject_of(model, *(tensor[:2] for tensor in data_for("mlp")))
    settings = replace(subject.training(), batch_size=2)
    assert choose_engine("auto", settings, Corrected()).name == "fused"


def shallow(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *layers)


@pytest.mark.parametrize(
    "make",
    [
        lambda: shallow(nn.Linear(72, 4), nn.Softmax(0)),
        lambda: shallow(nn.Linear(72, 8), nn.Softmax(0), nn.Linear(8, 4)),
        lambda: shallow(nn.Linear(72, 8), Apply(normed), nn.Linear(8, 4)),
    ],
)
def test_examples_that_are_mixed_in_a_shallow_model_are_noticed(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(InvalidSetting, match="cannot be trained"):
        choose_engine("fused", training(built(make)), Corrected())
