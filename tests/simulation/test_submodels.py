"""Rounds of HeteroFL: the widths of the clients, what they train, and the new global model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from simulator_cases import RESIDUAL, play, same_weights, small_data, small_experiment
from torch import Tensor, nn

from salf.data import Dataset
from salf.devices import CompletionTimes
from salf.errors import InvalidSetting
from salf.layers.costs import measure_costs
from salf.layers.find import find_layers
from salf.methods import HeteroFL
from salf.models import narrow, prefixes
from salf.records.rounds import RoundRecord
from salf.runs.checkpoint import load_checkpoint, save_checkpoint
from salf.simulation.server_state import ServerState
from salf.simulation.simulator import Simulation
from salf.simulation.synchronous import RoundPlan, SynchronousRounds

DATA = small_data()
HETEROFL: dict[str, Any] = {"method.name": "heterofl", "data.partition": "shards", "client.lr": 0.3}
CNN: dict[str, Any] = {
    "model.name": "cnn",
    "model.channels": [3, 4],
    "model.kernel": 3,
    "model.padding": 1,
    "model.hidden": [6],
}


def plan_of(simulation: Simulation, state: ServerState) -> RoundPlan:
    assert isinstance(simulation._rounds, SynchronousRounds)
    return simulation._rounds.plan(state)


def times(*whole: float) -> CompletionTimes:
    """Two layers and two steps of clients whose whole jobs take so long; nothing is sent."""
    share = np.array([[0.4, 0.3], [1.0, 0.8]])
    ready = np.array(whole)[:, None, None] * share
    return CompletionTimes(ready, ready, np.array(whole))


def test_each_client_is_given_the_widest_model_in_time() -> None:
    narrow_first = [times(1.0, 2.0, 9.0, 6.0), times(2.0, 5.0, 30.0, 9.0), times(4.0, 10.0, 90.0, 12.0)]
    schedule = HeteroFL(deadline=5.0).schedule(narrow_first, usual_seconds=99.0)
    assert schedule.workloads is not None
    assert schedule.workloads.tolist() == [2, 1, 0, 0]
    assert schedule.steps.tolist() == [[2, 2], [2, 2], [0, 0], [0, 0]]
    assert schedule.finished.tolist() == [[2, 2], [2, 2], [1, 1], [1, 2]]
    assert (schedule.seconds, schedule.deadline_seconds) == (5.0, 5.0)
    first_two = [CompletionTimes(own.ready[:2], own.sent[:2], own.whole[:2]) for own in narrow_first]
    early = HeteroFL().schedule(first_two, usual_seconds=50.0)
    assert early.workloads is not None
    assert (early.workloads.tolist(), early.seconds, early.deadline_seconds) == ([2, 2], 10.0, 50.0)


def test_a_wider_model_that_happens_to_be_faster_is_given() -> None:
    schedule = HeteroFL(deadline=5.0).schedule([times(6.0), times(4.0)], usual_seconds=1.0)
    assert schedule.workloads is not None
    assert (schedule.workloads.tolist(), schedule.steps.tolist()) == ([1], [[2, 2]])


@pytest.mark.parametrize(
    "settings",
    [
        {"client.lr": 0.3},
        {"client.local_steps": 3, "client.momentum": 0.9, "client.weight_decay": 0.01},
        {"client.optimizer": "adam", "client.lr": 0.01, "client.local_steps": 2},
        {"data.size_sigma": 1.0, "data.partition": "iid", "method.weight_by_examples": True},
        {"server.optimizer": "yogi", "server.lr": 0.1},
        CNN,
    ],
    ids=["one step", "momentum", "adam", "by examples", "server optimizer", "cnn"],
)
def test_of_full_width_in_time_and_unmasked_it_is_federated_averaging(settings: dict[str, Any]) -> None:
    same = {**HETEROFL, **settings, "engine": "plain", "devices.stragglers": 0.0}
    expected, plain = play(same | {"method.name": "fedavg"})
    result, records = play(same | {"method.widths": [1.0], "method.mask_labels": False})
    assert same_weights(result.weights, expected.weights)
    assert [replace(record, deadline_s=None) for record in records] == plain


class Naive:
    """HeteroFL's round in plain loops and double precision, from the clients' losses on."""

    def __init__(self, simulation: Simulation, method: HeteroFL) -> None:
        self.simulation, self.method = simulation, method
        self.model = simulation.federation.model

    def round(self, state: ServerState, widths: Mapping[int, float]) -> dict[str, Tensor]:
        """Return the weights after a round in which these clients train these widths."""
        totals = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in state.weights.items()}
        counts = {name: torch.zeros_like(value) for name, value in totals.items()}
        for client, width in widths.items():
            own = self.simulation.federation.partition[client]
            classes = torch.tensor(sorted(set(DATA.labels[own].tolist())))
            for name, value in self.train(state, client, width, classes).items():
                region = tuple(map(slice, value.shape))
                rows = classes if name.startswith("fc3") else torch.arange(len(value))
                totals[name][region][rows] += value[rows]
                counts[name][region][rows] += 1
        return {
            name: torch.where(counts[name] > 0, totals[name] / counts[name].clamp(min=1), old.double())
            for name, old in state.weights.items()
        }

    def train(self, state: ServerState, client: int, width: float, classes: Tensor) -> dict[str, Tensor]:
        model = narrow(self.model, width, scaler=self.method.scaler).double().train()
        model.load_state_dict(prefixes(state.weights, dict(model.named_parameters())))
        batch = torch.from_numpy(self.simulation.tasks(state).task(client).batches[0])
        scores = model(DATA.inputs[batch].double())
        absent = [label for label in range(4) if label not in classes]
        scores[:, absent] = 0.0
        gradients = torch.autograd.grad(nn.functional.cross_entropy(scores, DATA.labels[batch]), [*model.parameters()])
        lr = self.simulation.experiment.client.lr
        return {
            name: (parameter - lr * gradient).detach()
            for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True)
        }


@pytest.mark.parametrize("scaler", [True, False])
def test_a_round_of_several_widths_and_classes_by_hand(*, scaler: bool) -> None:
    settings = {**HETEROFL, "devices.kind": "physical", "devices.speed_sigma": 1.5, "method.scaler": scaler}
    experiment = small_experiment({**settings, "method.widths": [1.0, 0.5, 0.2], "method.deadline": 0.35})
    simulation = Simulation(experiment, dataset=DATA)
    assert isinstance(experiment.method, HeteroFL)
    naive, state, seen = Naive(simulation, experiment.method), simulation.initial_state(), set()
    for _ in range(4):
        plan = plan_of(simulation, state)
        assert plan.schedule.workloads is not None
        conveyed = plan.schedule.steps.any(axis=1)
        given = {
            client: (0.2, 0.5, 1.0)[plan.schedule.workloads[client]] for client in np.flatnonzero(conveyed).tolist()
        }
        expected = naive.round(state, given)
        state, record = simulation.play(state)
        for name, value in expected.items():
            assert state.weights[name].double().allclose(value, rtol=1e-5, atol=1e-6), name
        assert record.contributors == (len(given),) * 3
        assert record.depths == (6 - len(given), 0, 0, len(given))
        seen |= {*given.values(), *([0.0] if len(given) < 6 else [])}
    assert seen == {0.0, 0.2, 0.5, 1.0}


def test_records_count_what_narrower_models_cost() -> None:
    simulation = Simulation(small_experiment({**HETEROFL, "method.widths": [1.0, 0.5]}), dataset=DATA)
    state = simulation.initial_state()
    schedule = plan_of(simulation, state).schedule
    _, record = simulation.play(state)
    assert schedule.workloads is not None
    conveyed = schedule.steps.any(axis=1)
    sizes = []
    for width in (0.5, 1.0):
        model = narrow(simulation.federation.model, width)
        sizes.append(sum(parameter.nbytes for parameter in model.parameters()))
    down = np.array(sizes)[schedule.workloads]
    assert {*schedule.workloads.tolist()} == {0, 1}
    assert not conveyed.all()
    assert (record.bytes_down, record.bytes_up) == (down.sum(), down[conveyed].sum())
    model = narrow(simulation.federation.model, 0.5)
    costs = measure_costs(model, DATA.inputs[:2], find_layers(model, DATA.inputs[:2]))
    backward = np.array([costs.backward, simulation.workload.costs.backward])[schedule.workloads]
    kept = (backward[conveyed].sum()) / (backward * schedule.finished).sum()
    assert record.work_kept == pytest.approx(kept)


def test_a_class_that_no_contributor_holds_keeps_its_row() -> None:
    labels = torch.arange(96) // 24  # the first client holds class 0 alone, the last class 3
    data = Dataset.from_tensors(DATA.inputs, labels, DATA.test_inputs, DATA.test_labels)
    settings = {**HETEROFL, "data.partition": "label-order", "data.clients": 4, "client.cohort": 2, "rounds": 1}
    simulation = Simulation(small_experiment({**settings, "devices.stragglers": 0.0}), dataset=data)
    state = simulation.initial_state()
    cohort = plan_of(simulation, state).cohort.clients.tolist()
    after, _ = simulation.play(state)
    moved = (after.weights["fc3.weight"] != state.weights["fc3.weight"]).any(dim=1)
    assert moved.tolist() == [label in cohort for label in range(4)]
    assert (after.weights["fc1.weight"] != state.weights["fc1.weight"]).any()
    unmasked, _ = play({**settings, "devices.stragglers": 0.0, "method.mask_labels": False}, dataset=data)
    assert (unmasked.weights["fc3.weight"] != state.weights["fc3.weight"]).any(dim=1).all()


def normed() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    )


def test_statistics_are_computed_for_tests_alone() -> None:
    settings = {**HETEROFL, "evaluate.every": 2}
    simulation = Simulation(small_experiment(settings), model=normed(), dataset=DATA)
    state = simulation.initial_state()
    untested, record = simulation.play(state)
    assert record.accuracy is None
    assert untested.weights["1.running_mean"].equal(state.weights["1.running_mean"])
    tested, record = simulation.play(untested)
    assert record.accuracy is not None
    with torch.no_grad():
        outputs = nn.functional.conv2d(DATA.inputs, tested.weights["0.weight"], tested.weights["0.bias"])
    assert tested.weights["1.running_mean"].allclose(outputs.mean((0, 2, 3)), atol=1e-5)
    assert tested.weights["1.running_var"].allclose(outputs.var((0, 2, 3)), rtol=1e-4)
    # Training never looks at them: without the test of the second round the third ends with the same parameters.
    last, _ = simulation.play(tested)
    other, _ = play({**settings, "evaluate.every": 1000}, model=normed())
    assert same_weights(last.weights, other.weights)


@pytest.mark.parametrize("server", ["sgd", "adam"])
def test_a_run_resumes_from_a_checkpoint_to_the_last_bit(server: str, tmp_path: Any) -> None:
    settings = {**HETEROFL, "server.optimizer": server, "server.lr": 0.1, "evaluate.every": 1, "rounds": 4}
    whole, records = play(settings, model=normed())
    simulation = Simulation(small_experiment(settings), model=normed(), dataset=DATA)
    state, resumed = simulation.initial_state(), list[RoundRecord]()
    for _ in range(4):
        save_checkpoint(tmp_path / "state", state)
        again = Simulation(small_experiment(settings), model=normed(), dataset=DATA)
        state, record = again.play(load_checkpoint(tmp_path / "state")[0])
        resumed.append(record)
    assert same_weights(state.weights, whole.weights)
    assert resumed == records


@pytest.mark.parametrize("server", [{}, {"server.optimizer": "adam", "server.lr": 0.1}], ids=["averaging", "adam"])
def test_a_run_in_which_all_clients_are_late_changes_nothing(server: dict[str, Any]) -> None:
    settings = {**HETEROFL, **server, "method.deadline": 1e-9}
    state, records = play(settings)
    initial = Simulation(small_experiment(settings), dataset=DATA).initial_state()
    assert same_weights(state.weights, initial.weights)
    assert {record.contributors for record in records} == {(0, 0, 0)}
    assert [record.bytes_up for record in records] == [0, 0, 0]


def test_updates_that_are_not_finite_are_left_out() -> None:
    partition = Simulation(small_experiment(HETEROFL), dataset=DATA).federation.partition
    spoilt = Dataset.from_tensors(DATA.inputs.clone(), DATA.labels, DATA.test_inputs, DATA.test_labels)
    spoilt.inputs[partition[2]] = float("nan")
    state, records = play({**HETEROFL, "devices.stragglers": 0.0}, dataset=spoilt)
    assert [record.rejected for record in records] == [1, 1, 1]
    assert records[0].contributors == (5, 5, 5)
    assert all(value.isfinite().all() for value in state.weights.values())


def test_vgg_trains_in_several_widths() -> None:
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.randn(40, 3, 32, 32, generator=draw), torch.arange(40) % 4
    data = Dataset.from_tensors(images[:32], labels[:32], images[32:], labels[32:])
    settings = {**HETEROFL, "model.name": "vgg11", "data.clients": 4, "rounds": 1, "method.widths": [0.25, 0.0625]}
    state, (record,) = play(settings, dataset=data)
    initial = Simulation(small_experiment(settings), dataset=data).initial_state()
    changed = {name for name, value in state.weights.items() if not value.equal(initial.weights[name])}
    assert changed == state.weights.keys()
    assert record.accuracy is not None
    whole, deepest = state.weights["block8.conv.weight"], initial.weights["block8.conv.weight"]
    assert whole[128:].equal(deepest[128:])
    assert whole[:, 128:].equal(deepest[:, 128:])


@pytest.mark.parametrize("engine", ["fused", "stacked"])
def test_engines_for_one_model_are_refused(engine: str) -> None:
    with pytest.raises(InvalidSetting, match=f"engine is '{engine}', but .*'heterofl'.*choose 'auto' or 'plain'"):
        Simulation(small_experiment({**HETEROFL, "engine": engine}), dataset=DATA)


def test_models_that_cannot_be_narrowed_are_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"'heterofl'.*'stage1.0' is a _ResidualBlock.*choose model.name 'mlp'"):
        Simulation(small_experiment({**HETEROFL, **RESIDUAL}), dataset=DATA)


@pytest.mark.parametrize("widths", [[], [0.0], [1.5], [0.5, 1.0], [0.5, 0.5]], ids=str)
def test_wrong_widths_are_refused(widths: list[float]) -> None:
    with pytest.raises(InvalidSetting, match=r"method\.widths"):
        small_experiment({**HETEROFL, "method.widths": widths})
