"""A user's own model and data are simulated like any others; what cannot work is refused before the first round."""

import numpy as np
import pytest
import torch
from simulator_cases import CLASSES, SHAPE, built, play, same_weights, small_data, small_experiment, values_of
from torch import Tensor, nn
from torch.nn.utils import prune

from salf import simulate
from salf.data import Dataset
from salf.errors import InvalidSetting, SalfError, UnsuitableModel
from salf.experiment import Experiment
from salf.simulation.simulator import Simulation

DATA = small_data()
pytestmark = pytest.mark.filterwarnings("ignore:simulated one client after another")  # their rows depend on each other


class OutOfOrder(nn.Module):
    """Declares its modules in another order than it calls them in."""

    def __init__(self, outputs: int = CLASSES) -> None:
        super().__init__()
        self.head = nn.Linear(10, outputs)
        self.drop = nn.Dropout(0.3)
        self.body = nn.Linear(SHAPE[1] * SHAPE[2], 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.drop(self.body(x.flatten(1)).relu()))
        return scores


def refusal(
    model: nn.Module | None = None, dataset: Dataset | None = DATA, settings: dict[str, object] | None = None
) -> str:
    records = simulate(small_experiment(settings), model=model, dataset=dataset)
    with pytest.raises(SalfError) as caught:
        next(records)
    return str(caught.value)


def test_a_users_model_is_simulated_and_left_alone() -> None:
    model = OutOfOrder().eval()
    model.body.weight.grad = torch.ones_like(model.body.weight)
    before = values_of(model)
    records = list(simulate(small_experiment({"rounds": 20, "evaluate.every": 20}), model=model, dataset=DATA))
    assert len(records) == 20
    assert records[-1].accuracy is not None
    assert records[-1].accuracy > 0.5
    # The head is the layer nearest the output, which every straggler reaches.
    assert all(record.contributors[-1] == 6 for record in records)
    assert any(record.contributors[0] < 6 for record in records)
    assert same_weights(before, values_of(model))
    assert not any(module.training for module in model.modules())
    assert model.head.weight.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_a_run_starts_from_the_users_weights() -> None:
    model = OutOfOrder()
    simulation = Simulation(small_experiment(), model=model, dataset=DATA)
    state = simulation.initial_state()
    assert same_weights(state.weights, values_of(model))
    with torch.no_grad():
        model.head.weight.add_(1)
    assert not torch.equal(state.weights["head.weight"], model.head.weight)
    assert torch.equal(simulation.initial_state().weights["head.weight"], state.weights["head.weight"])


def test_tokens_can_be_learnt_from() -> None:
    tokens = torch.randint(0, 9, (60, 5), generator=torch.Generator().manual_seed(0))
    labels = tokens[:, 0] % 3
    data = Dataset.from_tensors(tokens, labels, tokens, labels)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(30, 3))
    settings = {"rounds": 60, "evaluate.every": 60, "client.lr": 0.5, "devices.stragglers": 0.5}
    _, records = play(settings, model=model, dataset=data)
    assert records[-1].accuracy is not None
    assert records[-1].accuracy > 0.8


def test_partly_frozen_models_keep_what_is_frozen() -> None:
    model = built("cnn")
    next(iter(model.children())).requires_grad_(False)
    state, _ = play({"devices.stragglers": 0.0}, model=model)
    moved = {name for name, before in values_of(model).items() if not torch.equal(before, state.weights[name])}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_tied_weights_stay_tied() -> None:
    first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    second.weight = first.weight
    model = nn.Sequential(nn.Flatten(), first, nn.Tanh(), second)
    state, _ = play({"devices.stragglers": 0.6}, model=model)
    assert torch.equal(state.weights["1.weight"], state.weights["3.weight"])
    assert not torch.equal(state.weights["1.weight"], first.weight)


def test_more_outputs_than_classes_do_no_harm() -> None:
    _, records = play({}, model=OutOfOrder(outputs=CLASSES + 3))
    assert len(records) == 3


def test_labels_beyond_the_models_outputs_are_refused() -> None:
    message = refusal(OutOfOrder(outputs=CLASSES - 1))
    assert message == (
        "for 4 examples the model returns a tensor of shape (4, 3), but scores of shape (4, 4) or wider are needed, "
        "one per label from 0 to 3; replace the last layer, or correct the labels"
    )


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = OutOfOrder()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.inner(x)}


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (Wrapped(), "a dict"),
        (nn.Sequential(OutOfOrder(), nn.Unflatten(1, (2, 2))), "a tensor of shape (4, 2, 2)"),
        (nn.Sequential(OutOfOrder(), nn.Flatten(0)), "a tensor of shape (16,)"),
    ],
    ids=["a mapping", "too many dimensions", "too few"],
)
def test_outputs_that_are_no_scores_are_refused(model: nn.Module, given: str) -> None:
    assert f"the model returns {given}, but scores of shape (4, 4)" in refusal(model)


def test_batch_normalisation_needs_more_than_one_example() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    message = refusal(model, settings={"client.batch_size": 1})
    assert message.startswith("the model cannot be trained on a batch of 1, the smallest that a client would use (")
    assert "raise client.batch_size, give every client more examples" in message
    one_each = Dataset.from_tensors(DATA.inputs[:8], DATA.labels[:8], DATA.test_inputs, DATA.test_labels)
    assert "a batch of 1" in refusal(model, one_each)
    assert len(play({"client.batch_size": 2}, model=model)[1]) == 3


def test_the_check_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    before, state = values_of(model), torch.get_rng_state()
    simulation = Simulation(small_experiment(), model=model, dataset=DATA)
    assert same_weights(simulation.initial_state().weights, before)
    assert same_weights(values_of(model), before)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(3, 2),
        nn.Sequential(nn.Flatten(), nn.ReLU()),
        OutOfOrder().requires_grad_(False),
        OutOfOrder().double(),
        nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES)),
    ],
    ids=["other inputs", "no parameters", "frozen", "double precision", "without shapes"],
)
def test_models_that_cannot_be_trained_are_refused(model: nn.Module) -> None:
    with pytest.raises(UnsuitableModel):
        next(simulate(small_experiment(), model=model, dataset=DATA))


def test_data_must_be_given_where_the_experiment_names_none() -> None:
    assert "data.name is 'tensors': give the data in Python" in refusal(dataset=None)


def test_more_clients_than_examples_are_refused() -> None:
    assert "only 96 examples exist" in refusal(settings={"data.clients": 97})


def test_a_named_model_that_does_not_fit_the_data_is_refused() -> None:
    flat = Dataset.from_tensors(torch.randn(20, 7), torch.arange(20) % 2, torch.randn(4, 7), torch.arange(4) % 2)
    with pytest.raises(InvalidSetting, match="takes images"):
        next(simulate(small_experiment({"model.name": "cnn"}), dataset=flat))
    assert len(play({}, dataset=flat)[1]) == 3


@pytest.mark.parametrize("partition", ["iid", "shards", "dirichlet", "label-order"])
def test_clients_train_on_their_share_of_the_partition(partition: str) -> None:
    simulation = Simulation(small_experiment({"data.partition": partition}), dataset=DATA)
    dealt = np.concatenate(list(simulation.federation.partition))
    assert sorted(dealt.tolist()) == list(range(len(DATA)))
    kinds = [len(set(DATA.labels[own].tolist())) for own in simulation.federation.partition]
    assert max(kinds) <= {"shards": 4, "label-order": 2}.get(partition, CLASSES)
    state, _ = simulation.play(simulation.initial_state())
    assert state.round == 1


class Masked(nn.Module):
    """Adds a mask with −∞ before a softmax; `counts` counts the passes in a buffer of whole numbers."""

    mask: Tensor
    passes: Tensor

    def __init__(self, *, counts: bool = False, persistent: bool = True) -> None:
        super().__init__()
        self.counts = counts
        self.stem = nn.Linear(SHAPE[1] * SHAPE[2], 6)
        self.register_buffer("mask", torch.tensor([0.1, -torch.inf, 1 / 3, 0.0, 2.7, 0.7]))
        self.register_buffer("passes", torch.tensor(0), persistent=persistent)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.counts:
            self.passes += 1
        scores: Tensor = self.head((self.stem(x.flatten(1)) + self.mask).softmax(-1))
        return scores


@pytest.mark.parametrize(
    "settings",
    [
        *({"engine": name} for name in ("plain", "fused", "stacked")),
        {"method.name": "fedasync"},
        {"method.name": "fedbuff", "method.buffer": 3},
    ],
    ids=["plain", "fused", "stacked", "fedasync", "fedbuff"],
)
def test_a_mask_with_infinite_values_stays_as_it_is(settings: dict[str, object]) -> None:
    model = Masked()
    state, records = play({"rounds": 5, **settings}, model=model)
    assert sum(record.rejected for record in records) == 0
    assert not torch.equal(state.weights["stem.weight"], model.stem.weight)
    for name, value in state.weights.items():
        assert value.isfinite().all() or name == "mask"
    assert torch.equal(state.weights["mask"].isinf(), model.mask.isinf())
    if settings != {"method.name": "fedbuff", "method.buffer": 3}:  # averages weights in its own sum
        assert torch.equal(state.weights["mask"], model.mask)


def test_a_buffer_of_whole_numbers_that_training_changes_is_refused_unless_it_is_left_out() -> None:
    assert refusal(Masked(counts=True)) == (
        "training changes the buffer 'passes', and its type, torch.int64, has no mean; register it with "
        "persistent=False, so that it stays on the client"
    )
    model = Masked(counts=True, persistent=False)
    assert len(play({}, model=model)[1]) == 3


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", ["pruned", "weight_norm"])
def test_a_model_whose_weights_are_computed_may_have_been_used_before(change: str) -> None:
    layer = nn.Linear(64, 8)
    if change == "pruned":
        prune.l1_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    else:
        nn.utils.weight_norm(layer)
    model = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), nn.Linear(8, 10))
    model(torch.zeros(2, 1, 8, 8))
    records = [*simulate(Experiment.load("digits", rounds=1), model=model)]
    assert records[0].contributors[1] == 30
