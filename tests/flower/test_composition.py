"""Which parts of Flower compose with partial replies, and which are refused with a reason."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from flower_cases import MemoryGrid, a_loop, answer, initial, inner, sending, update_of, wrapped
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import strategy as flower
from torch import nn

from salf.aggregation import Contributors, Corrected, Everyone, InverseProbability, LayerShare, Memory
from salf.errors import InvalidSetting
from salf.flower import ClippedLayers, Median, TrimmedMean
from salf.flower.wire import TrainInstructions
from salf.layers import find_layers

MODEL = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
LAYERS = find_layers(MODEL)
OPTIONS: dict[str, Any] = {"fraction_evaluate": 0.0, "min_train_nodes": 2, "min_available_nodes": 2}
CONTEXT = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def private(**options: Any) -> flower.DifferentialPrivacyClientSideFixedClipping:
    settings = {"noise_multiplier": 0.0, "clipping_norm": 0.05, "num_sampled_clients": 2, **options}
    return flower.DifferentialPrivacyClientSideFixedClipping(inner(2), **settings)


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        (flower.FedMedian(), r"with robust=Median\(\)"),
        (flower.FedTrimmedAvg(), r"with robust=TrimmedMean\(\)"),
        (flower.Krum(), r"with robust=Median\(\)"),
        (flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=1), r"with robust=Median\(\)"),
        (flower.Bulyan(), r"with robust=TrimmedMean\(\)"),
        (flower.QFedAvg(client_learning_rate=0.1), "weighs each whole reply by its loss"),
        (flower.FedXgbBagging(), "trees, which have no layers"),
        (flower.FedXgbCyclic(), "trees, which have no layers"),
        (flower.DifferentialPrivacyServerSideFixedClipping(inner(2), 1.0, 1.0, 2), "clips whole replies on the server"),
        (flower.DifferentialPrivacyServerSideAdaptiveClipping(inner(2), 0.0, 2), "clips whole replies on the server"),
        (flower.DifferentialPrivacyClientSideAdaptiveClipping(inner(2), 0.0, 2), "learns its clipping norm"),
        ("FedAvg", "give a strategy of flwr.serverapp.strategy"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_strategy_that_needs_whole_replies_is_refused_with_a_reason(strategy: Any, reason: str) -> None:
    with pytest.raises(InvalidSetting, match=reason):
        wrapped(strategy, LAYERS)


class Doubled(Everyone):
    """A mean over all clients in which each one weighs twice as much."""

    def factor(self, share: LayerShare) -> float:
        """Return twice the factor of the mean."""
        return 2 * super().factor(share)


@pytest.mark.parametrize(
    "rule",
    [Corrected(), Contributors(), Everyone(weight_by_examples=True), Everyone(normalise="steps"), Doubled(), Memory()],
)
def test_noise_for_a_mean_over_all_clients_is_not_added_to_another_mean(rule: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"use rule=Everyone\(\)"):
        wrapped(private(), LAYERS, rule=rule)


def test_noise_for_a_mean_over_all_clients_is_not_added_to_a_mean_over_examples() -> None:
    with pytest.raises(InvalidSetting, match=r"or over examples, .*; use rule=Everyone\(\) with weigh='clients'"):
        wrapped(private(), LAYERS, rule=Everyone(), weigh="examples")


@pytest.mark.parametrize("centre", [Median(), TrimmedMean()])
@pytest.mark.parametrize("rule", [Memory(), InverseProbability(), Corrected(weight_by_examples=True)])
def test_a_robust_centre_with_a_rule_that_weighs_clients_unequally_is_refused(centre: Any, rule: Any) -> None:
    with pytest.raises(InvalidSetting, match="weighs all contributors equally"):
        wrapped(inner(2), LAYERS, rule=rule, robust=centre)
    with pytest.raises(InvalidSetting, match="weighs all contributors equally; leave weigh alone"):
        wrapped(inner(2), LAYERS, robust=centre, weigh="examples")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"layers": MODEL}, "give salf.find_layers"),
        ({"deadline": 0}, "deadline_seconds is 0; choose a number greater than 0"),
        ({"rule": "corrected"}, r"give a rule, such as salf.Corrected\(\)"),
        ({"weigh": "steps"}, "weigh is 'steps'; choose 'clients' or 'examples'"),
        ({"robust": 1.0}, "give ClippedLayers"),
        ({"counted_from": "now"}, "choose 'message' or 'loop'"),
        ({"grace_seconds": -1}, "grace_seconds is -1; choose a number greater than 0"),
        ({"max_change": True}, "max_change is True; choose a number greater than 0"),
        ({"poll_seconds": math.inf}, "poll_seconds is inf; choose a finite number greater than 0"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidSetting, match=reason):
        wrapped(inner(2), **{"layers": LAYERS, **options})


def test_a_model_without_the_layers_is_refused() -> None:
    grid = MemoryGrid({1: sending(2), 2: sending(2)})
    with pytest.raises(InvalidSetting, match=r"initial_arrays lacks 0\.weight"):
        a_loop(grid, wrapped(inner(2), LAYERS)).run(initial(nn.Linear(1, 1)), 1)


def moving(depth: int, mod: Callable[..., Message] | None) -> Any:
    """Return a node whose reply goes through one of Flower's mods."""

    def client(message: Message, _: Context) -> Message:
        state = message.content.array_records["arrays"].to_torch_state_dict()
        return answer(message, update_of(depth, LAYERS, state, seed=1))

    def node(message: Message) -> Iterable[tuple[float, Message]]:
        return [(1.0, client(message, CONTEXT) if mod is None else mod(message, CONTEXT, client))]

    return node


def change_of(nodes: dict[int, Any], strategy: Any, **options: Any) -> tuple[dict[str, torch.Tensor], Any]:
    result = a_loop(MemoryGrid(nodes), wrapped(strategy, LAYERS, **options)).run(initial(MODEL), 1)
    after, before = result.arrays.to_torch_state_dict(), MODEL.state_dict()
    return {name: after[name] - before[name] for name in after}, result.train_metrics_clientapp[1]


@pytest.mark.parametrize("depth", [1, 2])
def test_client_side_clipping_bounds_a_partial_update_as_a_whole_one(depth: int) -> None:
    nodes = {1: moving(depth, fixedclipping_mod), 2: lambda _: ()}
    change, metrics = change_of(nodes, private(), rule=Everyone())
    assert metrics["salf-contributors"] == [depth - 1, 1]
    norm = torch.cat([tensor.flatten() for tensor in change.values()]).norm().item()
    assert norm == pytest.approx(0.05 / 2, rel=1e-3)  # one client weighs a half


def test_noise_has_flowers_size_and_leaves_unsent_layers_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - Flower draws its noise from it
    wide = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    layers = find_layers(wide)

    def node(message: Message) -> Iterable[tuple[float, Message]]:
        state = message.content.array_records["arrays"].to_torch_state_dict()
        return [(1.0, fixedclipping_mod(message, CONTEXT, lambda m, _: answer(m, update_of(1, layers, state))))]

    strategy = private(noise_multiplier=2.0, clipping_norm=1.0)
    result = a_loop(MemoryGrid({1: node, 2: node}), wrapped(strategy, layers, rule=Everyone())).run(initial(wide), 1)
    after = result.arrays.to_torch_state_dict()
    assert torch.equal(after["0.weight"], wide.state_dict()["0.weight"])
    spread = (after["1.weight"] - wide.state_dict()["1.weight"]).std().item()
    assert spread == pytest.approx(2.0 * 1.0 / 2, rel=0.05)


def test_an_accountant_is_refused() -> None:
    strategy = private(noise_multiplier=1.0)
    strategy.accountant = object()  # type: ignore[assignment]
    with pytest.raises(InvalidSetting, match="which counts whole replies"):
        wrapped(strategy, LAYERS, rule=Everyone())


@pytest.mark.parametrize("depth", [1, 2])
def test_local_differential_privacy_composes_with_whole_replies(depth: int) -> None:
    mod = LocalDpMod(clipping_norm=0.05, sensitivity=1e-9, epsilon=1.0, delta=0.1)
    nodes = {1: moving(depth, mod), 2: lambda _: ()}
    change, metrics = change_of(nodes, inner(2), rule=Everyone(), whole_replies=True)
    assert metrics["salf-contributors"] == [depth - 1, 1]
    assert torch.cat([t.flatten() for t in change.values()]).norm().item() == pytest.approx(0.025, rel=1e-3)


@pytest.mark.parametrize("mod", [fixedclipping_mod, adaptiveclipping_mod, LocalDpMod(0.05, 1.0, 1.0, 0.1)])
def test_a_mod_without_whole_replies_is_logged_and_changes_nothing(mod: Any) -> None:
    change, metrics = change_of({1: moving(1, mod), 2: moving(1, None)}, inner(2), rule=Contributors())
    assert metrics["salf-failed"] + metrics["salf-rejected"] == 1
    assert metrics["salf-contributors"] == [0, 1]
    assert all(torch.equal(tensor, torch.zeros_like(tensor)) for name, tensor in change.items() if name.startswith("0"))


@pytest.mark.parametrize("name", ["FedAdam", "FedYogi", "FedAdagrad", "FedAvgM"])
def test_a_server_optimizer_takes_its_step_from_the_layerwise_mean(name: str) -> None:
    """With whole replies it is Flower's own step; with partial ones the unreached layer stays."""
    options = {**OPTIONS, **({"server_momentum": 0.9} if name == "FedAvgM" else {"eta": 0.01})}

    def make() -> Any:
        return getattr(flower, name)(**options)

    nodes = {1: moving(2, None), 2: moving(2, None)}
    change, _ = change_of(nodes, make(), rule=Contributors())
    alone, grid = make(), MemoryGrid(nodes)
    messages = list(wrapped(make(), LAYERS).configure_train(1, initial(MODEL), ConfigRecord(), grid))
    alone.configure_train(1, initial(MODEL), ConfigRecord(), grid)
    made, _ = alone.aggregate_train(1, [reply for message in messages for _, reply in nodes[1](message)])
    for key, value in made.to_torch_state_dict().items():
        torch.testing.assert_close(MODEL.state_dict()[key] + change[key], value.float(), rtol=1e-4, atol=1e-6)
    change, _ = change_of({1: moving(1, None), 2: moving(0, None)}, make())
    assert not change["0.weight"].any()
    assert change["2.weight"].any()


def test_a_proximal_term_still_reaches_the_clients() -> None:
    grid = MemoryGrid({1: sending(1), 2: sending(1)})
    a_loop(grid, wrapped(flower.FedProx(proximal_mu=0.3, **OPTIONS), LAYERS)).run(initial(MODEL), 1)
    config = grid.sent[0].content.config_records["config"]
    assert config["proximal-mu"] == 0.3
    assert TrainInstructions.read(grid.sent[0]).round == 1


def test_clipped_layers_bound_what_one_client_can_do() -> None:
    change, _ = change_of(
        {1: moving(2, None), 2: moving(0, None)}, inner(2), robust=ClippedLayers(0.01), rule=Contributors()
    )
    for layer in LAYERS:
        norm = torch.cat([change[name].flatten() for name in layer.parameters]).norm().item()
        assert norm == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("centre", [Median(), TrimmedMean(0.25)])
def test_a_centre_withstands_what_moves_the_mean(centre: Any) -> None:
    state = MODEL.state_dict()

    def hostile(message: Message) -> Iterable[tuple[float, Message]]:
        update = update_of(2, LAYERS, state)
        far = {name: torch.full_like(delta, 9.0) for name, delta in update.deltas.items()}
        return [(1.0, answer(message, type(update)(far, update.steps, 10)))]

    nodes = {1: sending(2, seed=1), 2: sending(2, seed=2), 3: sending(2, seed=3), 4: hostile}
    moved, _ = change_of(nodes, inner(4), robust=centre)
    mean, _ = change_of(nodes, inner(4))
    assert max(float(tensor.abs().max()) for tensor in moved.values()) < 0.5
    assert min(float(tensor.abs().max()) for tensor in mean.values()) > 2.0
