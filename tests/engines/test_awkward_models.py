"""Models that write into what they are given, combine parameters of several layers, or read buffers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from engine_cases import DOUBLE, Round, Subject, assert_close, play, single_thread, steps_to, subject_of, tasks_of
from engine_models import CLASSES, TOKENS, WIDTH, built, data_for
from torch import Tensor, nn
from torch.nn import functional

from salf.aggregation.rules import Contributors, InverseProbability, Rule
from salf.errors import UnsuitableModel
from salf.layers.find import find_layers

one_thread = pytest.fixture(scope="module", autouse=True)(single_thread)

KINDS = ["fused", "stacked"]
RULES = [Contributors(), InverseProbability()]


def awkward(make: Callable[[], nn.Module], data: str = "mlp") -> Subject:
    return subject_of(built(make, double=True), *data_for(data, double=True))


def assert_equals_plain(kind: str, subject: Subject, rule: Rule) -> None:
    """Compare a round of two clients of every depth."""
    layers = len(subject.layers)
    depths = [*range(layers + 1), *range(layers + 1)]
    reach = np.random.default_rng(0).uniform(0.1, 1, (len(depths), layers))
    tasks = tasks_of(steps_to(depths, layers), [3] * len(depths))
    played = Round(tasks, rule, reach if isinstance(rule, InverseProbability) else None)
    assert_close(play(subject.engine(kind), subject, played), play(subject.engine("plain"), subject, played), DOUBLE)


def in_place() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, CLASSES)
    )


def pooled_in_place() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, CLASSES)
    )


class SharingGradients(nn.Module):
    """Has parameters to which autograd gives one and the same gradient, and one whose gradient is a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(72, 6)
        self.one, self.other, self.spread = (nn.Parameter(torch.randn(6)) for _ in range(3))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1)) + (self.one + self.other) + self.spread.sum()
        scores: Tensor = self.head(torch.relu(x))
        return scores


class Shifting(nn.Module):
    """Adds a parameter in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(72, 6)
        self.shift = nn.Parameter(torch.randn(6))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        x += self.shift
        scores: Tensor = self.head(torch.tanh(x))
        return scores


IN_PLACE = {"activation": in_place, "after pooling": pooled_in_place, "addition": Shifting}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("kind", KINDS)
def test_results_that_are_changed_in_place(kind: str, name: str, rule: Rule) -> None:
    assert_equals_plain(kind, awkward(IN_PLACE[name]), rule)


class Joint(nn.Module):
    """One weight is the product of the parameters of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle = nn.Linear(72, 6), nn.Linear(6, 6)
        self.gain = nn.Linear(6, 1, bias=False)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x.flatten(1)))
        x = functional.linear(x, self.middle.weight * self.gain.weight, self.middle.bias)
        scores: Tensor = self.head(torch.tanh(x))
        return scores


class Buffered(nn.Module):
    """Multiplies by a buffer."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(72, 6)
        self.register_buffer("scale", torch.ones(6))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.tanh(self.stem(x.flatten(1)) * self.scale))
        return scores


class Classified(nn.Module):
    """Puts a token of its own before the others, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(x.size(0), -1, -1), self.embed(x)], 1)
        scores: Tensor = self.head(tokens.amax(1))
        return scores


def test_a_weight_that_is_made_of_two_layers_is_trained_client_by_client() -> None:
    subject = awkward(Joint)
    assert_equals_plain("stacked", subject, Contributors())
    # A client that reaches only one of the layers could not convey its gradient in a common pass.
    with pytest.raises(UnsuitableModel, match="depends on several layers"):
        subject.engine("fused")


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_are_those_of_the_global_weights(kind: str) -> None:
    subject = awkward(Buffered)
    weights = {**subject.weights, "scale": 2 * subject.weights["scale"]}
    assert_equals_plain(kind, subject._replace(weights=weights), Contributors())


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_that_is_expanded_to_the_size_of_the_batch(kind: str) -> None:
    assert_equals_plain(kind, awkward(Classified, "tied"), Contributors())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_share_their_gradient(kind: str, rule: Rule) -> None:
    assert_equals_plain(kind, awkward(SharingGradients), rule)


class Bags(nn.Module):
    """Sums embeddings by an operation that torch cannot vectorise."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(TOKENS, WIDTH, mode="sum")
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.embed(x))
        return scores


def test_an_operation_that_cannot_be_vectorised_is_done_without_a_word() -> None:
    assert_equals_plain("stacked", awkward(Bags, "tied"), Contributors())


class Centring(nn.Module):
    """Writes into its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(72, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(x.sub_(0.5).flatten(1))
        return scores


@pytest.mark.parametrize("kind", ["plain", *KINDS])
def test_a_model_that_writes_into_its_inputs_does_not_change_the_data(kind: str) -> None:
    model, (inputs, labels) = built(Centring), data_for("mlp")
    inputs = inputs.clone()
    layers, before = find_layers(model, inputs[:2].clone()), inputs.clone()
    subject = Subject(model, layers, inputs, labels, model.state_dict())
    play(subject.engine(kind), subject, Round(tasks_of([[1], [1]], [3, 2]), Contributors()))
    assert torch.equal(inputs, before)


def test_finding_the_layers_of_a_model_that_writes_into_its_inputs_does_not_change_the_data() -> None:
    inputs = data_for("mlp")[0].clone()
    before = inputs.clone()
    find_layers(built(Centring), inputs[:2])
    assert torch.equal(inputs, before)
