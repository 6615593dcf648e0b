"""Chains of well-known operations are found, and differentiated as autograd does it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from engine_cases import (
    DECAYING,
    DOUBLE,
    Round,
    Subject,
    assert_close,
    play,
    single_thread,
    steps_to,
    subject_of,
    tasks_of,
)
from engine_models import CLASSES, built, data_for
from torch import Tensor, nn
from torch.nn import functional

from salf.aggregation.rules import Contributors, InverseProbability, Memory, Rule
from salf.engines.fused import chain_ops
from salf.engines.fused.chain import ChainPass, find_chain
from salf.engines.fused.tracing import trace_rows
from salf.errors import InvalidSetting
from salf.layers.find import find_layers

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)


class Written(nn.Module):
    """Functions and methods instead of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.body = nn.Linear(64, 6)
        self.middle = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(torch.relu(self.conv(x)), 1)
        scores: Tensor = self.head(self.middle(functional.relu(self.body(x), inplace=True)).relu().flatten(start_dim=1))
        return scores


def rows_of_rows() -> nn.Module:
    """Linear layers on matrices, and activations that are computed again."""
    return nn.Sequential(
        nn.Flatten(2), nn.Linear(36, 5), nn.Tanh(), nn.ReLU(), nn.Linear(5, 3, bias=False), nn.Flatten(), nn.GELU(),
        nn.Identity(), nn.Linear(6, CLASSES),
    )  # fmt: skip


def convolutions() -> nn.Module:
    """Strides, groups, dilation and padding; pooling of every kind, changed in place."""
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(2, 4, 3, padding=2, groups=2), nn.ReLU(True), nn.MaxPool2d(2), nn.ReLU(True),
        nn.Conv2d(4, 4, (2, 1), stride=(1, 2), dilation=2, bias=False), nn.MaxPool2d(2, 1), nn.AvgPool2d(1),
        nn.Flatten(), nn.Linear(4, CLASSES),
    )  # fmt: skip


def half_frozen() -> nn.Module:
    """Frozen at the input and in the middle, and in parts."""
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 6), nn.ReLU(),
        nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, CLASSES),
    )  # fmt: skip
    for name in ("0.weight", "0.bias", "2.weight", "5.bias", "7.weight", "7.bias"):
        model.get_parameter(name).requires_grad_(False)
    return model


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "written": Written,
    "rows of rows": rows_of_rows,
    "convolutions": convolutions,
    "half frozen": half_frozen,
}


def chain_of(subject: Subject) -> ChainPass | None:
    return find_chain(trace_rows(subject.model, subject.inputs[:3]), subject.layers)


def prepared(model: Callable[[], nn.Module]) -> Subject:
    return subject_of(built(model, double=True), *data_for("mlp", double=True))


@pytest.mark.parametrize("rule", [Contributors(), InverseProbability(), Memory()])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_gives_what_client_by_client_comes_out(name: str, rule: Rule) -> None:
    subject = prepared(CHAINS[name])
    assert chain_of(subject) is not None
    assert_equals_plain(subject, rule)


def assert_equals_plain(subject: Subject, rule: Rule) -> None:
    """Compare rounds of clients of every depth, and one in which no client reaches the first layer."""
    layers = len(subject.layers)
    for depths in ([*range(layers + 1), *range(layers + 1)], [layers - 1, 1, 1]):
        reach = np.random.default_rng(0).uniform(0.1, 1, (len(depths), layers))
        tasks = tasks_of(steps_to(depths, layers), [2 + place % 3 for place in range(len(depths))])
        played = Round(tasks, rule, reach if isinstance(rule, InverseProbability) else None)
        fused, plain = (play(subject.engine(kind, DECAYING), subject, played) for kind in ("fused", "plain"))
        assert_close(fused, plain, DOUBLE)


def wide() -> nn.Module:
    """Layers with many outputs and with few."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 18), nn.ReLU(), nn.Linear(18, 16), nn.ReLU(), nn.Linear(16, CLASSES)
    )


@pytest.mark.parametrize("rule", [Contributors(), Memory()])
@pytest.mark.parametrize("limits", [(1, 16, 2**21, 2**15), (2048, 1, 2**21, 0), (2048, 100, 2**21, 2**15)])
def test_products_are_the_same_in_whatever_order_they_are_computed(
    limits: tuple[int, ...], rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in zip(("_MANY_ROWS", "_FEW_COLUMNS", "_SMALL", "_SMALL_GRADIENT"), limits, strict=True):
        assert hasattr(chain_ops, name)
        monkeypatch.setattr(chain_ops, name, limit)
    subject = prepared(wide)
    assert chain_of(subject) is not None
    assert_equals_plain(subject, rule)


@pytest.mark.parametrize("model", [wide, rows_of_rows])
def test_inputs_may_lie_in_memory_in_another_order(model: Callable[[], nn.Module]) -> None:
    subject = prepared(model)
    turned = subject.inputs.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    assert not turned.is_contiguous()
    subject = subject._replace(inputs=turned)
    assert chain_of(subject) is not None
    assert_equals_plain(subject, Contributors())


@pytest.mark.parametrize("steps", [[[0, 2, 2], [0, 1, 1]], [[1, 0, 1]], [[0, 2, 0], [1, 0, 0]], [[0, 0, 2], [0, 2, 0]]])
def test_other_steps_than_one_from_the_output_on_are_refused(steps: list[list[int]]) -> None:
    subject = prepared(wide)
    played = Round(tasks_of(steps, [3] * len(steps)), Contributors())
    with pytest.raises(InvalidSetting, match="computes one step, from the output on"):
        play(subject.engine("fused"), subject, played)


def test_several_operations_of_a_chain_may_be_one_layer() -> None:
    model, (inputs, labels) = built(Written, double=True), data_for("mlp", double=True)
    layers = find_layers(model, inputs[:2], group=lambda module: "early" if module in ("conv", "body") else module)
    assert layers.names == ("early", "middle", "head")
    subject = subject_of(model, inputs, labels)._replace(layers=layers)
    assert chain_of(subject) is not None
    assert_equals_plain(subject, InverseProbability())
    assert_equals_plain(subject, Memory())


class Twice(nn.Module):
    """One module is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Linear(72, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.again(self.again(self.stem(x.flatten(1)))))
        return scores


class Around(nn.Module):
    """A way around the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(72, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        scores: Tensor = self.head(x + self.middle(x))
        return scores


def tied() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES))
    model.get_submodule("3").register_parameter("weight", model.get_parameter("2.weight"))
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    model.get_submodule("1").register_forward_hook(lambda module, arguments, result: 2 * result)
    return model


class Louder(nn.Linear):
    """Not what its base class is."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


NO_CHAINS: dict[str, Callable[[], nn.Module]] = {
    "a module that is used again": Twice,
    "a way around": Around,
    "tied weights": tied,
    "a hook": hooked,
    "a module of the user's": lambda: nn.Sequential(nn.Flatten(), Louder(72, CLASSES)),
    "batch normalisation": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, CLASSES)
    ),
    "other parameters": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.PReLU(), nn.Flatten(), nn.Linear(48, CLASSES)),
    "another padding": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(108, CLASSES)
    ),
    "padding by name": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.Flatten(), nn.Linear(108, CLASSES)),
    "writing in place": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ELU(inplace=True), nn.Flatten(), nn.Linear(48, CLASSES)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_CHAINS)
def test_what_is_no_chain_is_left_to_autograd(name: str) -> None:
    subject = prepared(NO_CHAINS[name])
    assert chain_of(subject) is None
    assert_equals_plain(subject, Contributors())
    with pytest.raises(InvalidSetting, match="only sums"):
        assert_equals_plain(subject, Memory())


def test_memory_of_results_counts_each_storage_once() -> None:
    """Views and what is written in place take none; the examples themselves are the first result."""
    inputs = torch.zeros(3, 2, 6, 6)
    example, hidden, outputs = 4 * 72, 4 * 5, 4 * CLASSES
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.ReLU(inplace=True), nn.Linear(5, CLASSES))
    assert trace_rows(model, inputs).bytes_per_example == example + hidden + outputs
    model[2] = nn.ReLU()
    assert trace_rows(model, inputs).bytes_per_example == example + 2 * hidden + outputs
