"""Clients that skip the training of output layers: its cost, what they send, and who may skip."""

import copy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from engine_cases import training_of
from hypothesis import given, settings, strategies as st
from simulator_cases import MODELS, SHAPE, built, everyone, play, small_data, small_experiment, workload
from torch import nn

import salf
from salf.aggregation.aggregation import Aggregation
from salf.aggregation.rules import Contributors
from salf.devices import CompletionTimes, ExponentialLayers, GradedSpeeds, Physical, Workload
from salf.engines import OptimizerSettings, PlainEngine, StackedEngine, Tasks
from salf.errors import InvalidSetting
from salf.layers.costs import measure_costs, measure_passing
from salf.layers.find import Layers, find_layers
from salf.methods import ReachingDeeper, Salf
from salf.participation.observed import ObservedReach
from salf.simulation.simulator import Simulation
from salf.values import LayerCosts

GRADED: dict[str, object] = {"devices.kind": "graded", "data.clients": 12, "client.batch_size": 8}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_left_is_what_a_pass_with_frozen_output_layers_takes(name: str) -> None:
    model, example = built(name), torch.randn(2, *SHAPE)
    layers = find_layers(model, example)
    costs = measure_passing(model, example, layers, measure_costs(model, example, layers))
    assert costs.passing is not None
    for skipped in range(1, len(layers)):
        twin = copy.deepcopy(model)
        frozen = {parameter for layer in layers[-skipped:] for parameter in layer.parameters}
        for parameter, value in twin.named_parameters():
            value.requires_grad = parameter not in frozen
        left = measure_costs(twin, example, Layers(tuple(layers[: len(layers) - skipped])))
        assert Workload(costs, 1, skipped=skipped).backward.sum() == pytest.approx(sum(left.backward), rel=0.02)


def test_a_matrix_product_is_left_of_two() -> None:
    model = nn.Sequential(*(nn.Linear(40, 40, bias=False) for _ in range(3)))
    example = torch.randn(2, 40)
    layers = find_layers(model, example)
    costs = measure_passing(model, example, layers, measure_costs(model, example, layers))
    assert costs.passing == pytest.approx((0.0, 3200, 3200), abs=5)
    assert costs.backward == pytest.approx((3200, 6400, 6400), rel=0.03)


def test_layers_that_are_passed_through_take_less_time_and_are_not_sent() -> None:
    costs = LayerCosts(10.0, (10.0, 20.0, 30.0), (1, 2, 4), passing=(0.0, 8.0, 12.0))
    usual, one, two = (Workload(costs, 1, skipped=skipped) for skipped in range(3))
    assert [list(each.backward) for each in (usual, one, two)] == [[10, 20, 30], [10, 20, 12], [10, 8, 12]]
    assert [list(each.upload_bytes) for each in (usual, one, two)] == [[1, 2, 4], [1, 2, 0], [1, 0, 0]]
    assert list(Workload(replace(costs, passing=None), 1, skipped=1).backward) == [10, 20, 15]
    devices = Physical(step_seconds=7.0, speed_sigma=0.0, jitter=0.0, bandwidth_bits_per_second=1e12)
    ends = [devices.times(each, everyone(2)).ready[0, 0].tolist() for each in (usual, one, two)]
    assert ends == [pytest.approx(each, rel=1e-6) for each in ([7.0, 6.0, 4.0], [5.2, 4.2, 2.2], [4.0, 3.0, 2.2])]
    for model in (GradedSpeeds(), ExponentialLayers()):
        slow, quick = (model.times(each, everyone(3)).ready[1:, 0] for each in (usual, two))
        assert (quick[:, 0] < slow[:, 0]).all()


def choose_naively(
    options: list[CompletionTimes], seconds: float, covered: float, first: int
) -> list[tuple[int, list[int]]]:
    """Client by client: its option, and which layers it conveys."""
    clients, _, layers = options[0].sent.shape
    ordinary = [[bool(options[0].sent[u, 0, at] <= seconds) for at in range(layers)] for u in range(clients)]
    most = 0
    while most < layers - 1 and sum(row[layers - 1 - most] for row in ordinary) >= covered * clients:
        most += 1
    found = []
    for u in range(clients):
        brings = [[at for at in range(layers - k) if options[k].sent[u, 0, at] <= seconds] for k in range(most + 1)]
        nearest = [min(own, default=layers) for own in brings]
        option = nearest.index(min(nearest)) if u % 2 == first else 0
        found.append((option, brings[option]))
    return found


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99), st.floats(0.2, 4.0), st.floats(0, 1), st.booleans())
def test_which_clients_may_skip_and_how_deep_they_get(
    layers: int, clients: int, seed: int, seconds: float, covered: float, odd: bool
) -> None:
    method, whole = ReachingDeeper(deadline=seconds, covered=covered), workload(layers)
    cohort = everyone(clients, seed=seed)
    options = [Physical(step_seconds=1.0).times(each, cohort) for each in method.workloads(whole)]
    schedule = method.in_round(7 if odd else 8, 1.0, ObservedReach(num_layers=1)).schedule(options, 1.0)
    assert schedule.workloads is not None
    steps = [np.flatnonzero(row).tolist() for row in schedule.steps]
    assert [*zip(schedule.workloads.tolist(), steps, strict=True)] == choose_naively(
        options, seconds, covered, int(odd)
    )
    ordinary = Salf(deadline=seconds).schedule(options[:1], 1.0).steps
    assert (schedule.steps[int(odd) ^ 1 :: 2] == ordinary[int(odd) ^ 1 :: 2]).all()
    deepest, before = (np.where(each.any(axis=1), each.argmax(axis=1), layers) for each in (schedule.steps, ordinary))
    assert (deepest <= before).all()
    assert schedule.seconds <= seconds


def masks(rows: int, layers: int, steps: int, seed: int) -> npt.NDArray[np.int64]:
    """Steps of clients that train a stretch of layers, the last step perhaps not all of it."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((rows, layers), dtype=np.int64)
    for row in counts:
        last = int(rng.integers(1, layers + 1))
        done = int(rng.integers(0, last * steps + 1))
        row[:last] = (done + np.arange(last)) // last
    return counts


@pytest.mark.parametrize("name", MODELS)
def test_what_is_sent_is_what_training_the_other_layers_alone_gives(name: str) -> None:
    how = OptimizerSettings() if name == "mlp" else OptimizerSettings(momentum=0.9, weight_decay=0.01)
    model, data = built(name).double(), small_data()
    inputs, labels = data.inputs.double(), data.labels
    layers = find_layers(model, inputs[:2])
    weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
    steps = masks(10, len(layers), 3, seed=5)
    batches = np.random.default_rng(1).integers(len(inputs), size=(10, 3, 4))
    tasks = Tasks(np.arange(10), steps, batches, np.full(10, 4), 0, 1)
    engine = PlainEngine(training_of(model, layers, inputs, labels, how))
    for task, update in zip(tasks, engine.updates(weights, tasks), strict=True):
        conveyed = [layer for layer, count in zip(layers, task.steps, strict=True) if count]
        assert update.steps == {layer.name: int(n) for layer, n in zip(layers, task.steps, strict=True) if n}
        twin = copy.deepcopy(model).train()
        own = dict(twin.named_parameters())
        trained = [own[key] for layer in conveyed for key in layer.parameters]
        for value in twin.parameters():
            value.requires_grad = any(value is each for each in trained)
        kept = []
        if trained:
            build = torch.optim.SGD(trained, how.lr, momentum=how.momentum, weight_decay=how.weight_decay)
            for batch in task.batches[: task.steps.max()]:
                build.zero_grad()
                nn.functional.cross_entropy(twin(inputs[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
                build.step()
                kept.append({key: tensor.detach().clone() for key, tensor in twin.state_dict().items()})
        for layer in conveyed:
            after = kept[update.steps_of(layer.name) - 1]
            for key in layer.parameters:
                torch.testing.assert_close(update.deltas[key], after[key] - weights[key], rtol=1e-9, atol=1e-12)
    moved = []
    for kind in (PlainEngine, StackedEngine):
        running = Aggregation(weights, layers, Contributors())
        kind(training_of(model, layers, inputs, labels, how)).train_cohort(weights, tasks, running)
        moved.append(running.finish(10).state)
    for key, expected in moved[0].items():
        torch.testing.assert_close(moved[1][key], expected, rtol=1e-7, atol=1e-9)


def test_more_clients_get_to_the_first_layer() -> None:
    usual, deeper = (play({**GRADED, "method.name": name, "rounds": 2})[1] for name in ("salf", "deeper"))
    for before, after in zip(usual, deeper, strict=True):
        assert after.contributors[0] > before.contributors[0]
        assert after.time_s == before.time_s
    assert deeper[0].engine in ("plain", "stacked")


def test_the_fused_engine_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="engine is 'fused', which computes layers from the output on"):
        Simulation(small_experiment({**GRADED, "method.name": "deeper", "engine": "fused"}), dataset=small_data())


def test_a_real_client_passes_through_layers_that_it_freezes() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    inputs, labels = torch.randn(8, 6), torch.randint(0, 3, (8,))
    layers = salf.find_layers(model, inputs[:2])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model[4].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with salf.deadline(model, optimizer, seconds=60, layers=layers) as work:
        nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    update = work.update(num_examples=8)
    assert update.steps == {"0": 1, "2": 1}
    salf.check_update(update, layers, state)
    whole = salf.Update({name: torch.ones_like(value) for name, value in state.items()}, steps=1, num_examples=8)
    result = salf.aggregate(state, [update, whole], layers, salf.Contributors())
    assert result.contributors == (2, 2, 1)
    torch.testing.assert_close(result.state["4.bias"], state["4.bias"] + 1)
    torch.testing.assert_close(result.state["0.bias"], state["0.bias"] + (update.deltas["0.bias"] + 1) / 2)
