"""Records of what happened in a round; a diverging run still ends with a finite model."""

import numpy as np
import pytest
import torch
from simulator_cases import CLASSES, RULES, play, same_weights, small_data, small_experiment, workload
from torch import Tensor, nn

from salf import simulate
from salf.data import Dataset
from salf.devices import Cohort, Physical
from salf.methods import RoundSchedule
from salf.records.rounds import RoundRecord
from salf.simulation.simulator import Simulation
from salf.simulation.synchronous import work_kept


def test_work_kept_by_hand() -> None:
    costs = workload(3).backward  # 2, 3 and 4 operations

    def kept(steps: list[list[int]], finished: list[list[int]], accepted: bool = True) -> float | None:
        who = np.array([accepted] + [True] * (len(steps) - 1))
        return work_kept(RoundSchedule(np.array(steps), np.array(finished), 1.0, 1.0), costs, who)

    assert kept([[0, 1, 1], [1, 1, 2]], [[1, 1, 1], [1, 2, 2]]) == pytest.approx((7 + 13) / (9 + 16))
    assert kept([[0, 0, 0]], [[0, 0, 1]]) == 0.0
    assert kept([[2, 2, 2]], [[2, 2, 2]]) == 1.0
    assert kept([[0, 0, 0]], [[0, 0, 0]]) is None
    assert kept([[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 1]], accepted=False) == 0.5


def test_work_kept_of_a_round() -> None:
    settings = {"devices.stragglers": 0.5, "data.clients": 8, "rounds": 2}
    layerwise, dropping = (play({**settings, "method.name": name})[1] for name in ("salf", "drop"))
    assert [record.work_kept for record in layerwise] == [1.0, 1.0]
    simulation = Simulation(small_experiment(settings), dataset=small_data())
    costs = np.array(simulation.workload.costs.backward)
    for record in dropping:
        times = simulation.experiment.devices.times(simulation.workload, Cohort(np.arange(8), 8, record.round, 5))
        done = times.steps_by(1.0) @ costs
        assert record.work_kept == pytest.approx(done[times.whole <= 1.0].sum() / done.sum())
        assert record.work_kept is not None
        assert record.work_kept < 1


def test_work_whose_sending_takes_too_long_is_not_kept() -> None:
    slow_links = {"devices.kind": "physical", "devices.bandwidth_bits_per_second": 3e4, "rounds": 4}
    _, records = play(slow_links)
    assert any(record.work_kept is not None and 0 < record.work_kept < 1 for record in records)


def test_virtual_time_adds_up() -> None:
    settings = {"devices.kind": "physical", "devices.availability": "on-off", "method.name": "fedavg", "rounds": 3}
    simulation = Simulation(small_experiment(settings), dataset=small_data())
    assert isinstance(simulation.experiment.devices, Physical)
    _, records = play(settings)
    clock = 0.0
    for record in records:
        cohort = Cohort(np.arange(6), 6, record.round, 5)
        clock += float(simulation.experiment.devices.times(simulation.workload, cohort).whole.max())
        assert record.time_s == pytest.approx(clock)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lr", [1e4, 1e30])
def test_a_diverging_run_goes_on_with_a_finite_model(lr: float, rule: str) -> None:
    settings = {"client.lr": lr, "rounds": 6, "method.rule": rule, "evaluate.every": 1, "model.hidden": [8, 8, 8, 6]}
    state, records = play(settings)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.weights.values())
    assert sum(record.rejected for record in records) > 0
    for record in records:
        assert RoundRecord.from_json(record.to_json()) == record
        assert record.accuracy is not None
        assert max(record.contributors) + record.rejected <= record.clients
    if lr > 1e10:
        assert records[-1].loss is None


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) ** 2


def with_and_without_overflow(settings: dict[str, object]) -> tuple[Simulation, Simulation]:
    """The same experiment twice: as it should be, and with examples of client 2 whose squares are not finite."""
    experiment = small_experiment({"devices.stragglers": 0.0, "rounds": 2, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(Squares(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    good = small_data()
    lucky = Simulation(experiment, model=model, dataset=good)
    inputs = good.inputs.clone()
    inputs[torch.from_numpy(lucky.federation.partition[2])] = 1e38
    bad = Dataset.from_tensors(inputs, good.labels, good.test_inputs, good.test_labels)
    return lucky, Simulation(experiment, model=model, dataset=bad)


def test_a_refused_update_changes_no_other_client() -> None:
    lucky, unlucky = with_and_without_overflow({"method.rule": "memory"})
    expected, _ = lucky.play(lucky.initial_state())
    state, record = unlucky.play(lucky.initial_state())
    assert (record.rejected, set(record.contributors)) == (1, {5})
    assert record.work_kept == pytest.approx(5 / 6)
    assert sorted(state.memory) == [0, 1, 3, 4, 5]
    assert state.observed.to_arrays()["reached"].tolist() == [[int(client != 2)] * 2 for client in range(6)]
    for client, remembered in state.memory.items():
        for layer, last in remembered.items():
            assert same_weights(last.deltas, expected.memory[client][layer].deltas)


def test_a_refused_client_still_counts_as_asked() -> None:
    moved = {}
    for normalise in ("received", "everyone"):
        lucky, unlucky = with_and_without_overflow({"method.name": "drop", "method.normalise": normalise})
        before = lucky.initial_state()
        after, record = unlucky.play(before)
        assert record.rejected == 1
        moved[normalise] = after.weights["1.weight"] - before.weights["1.weight"]
    assert moved["everyone"].allclose(moved["received"] * 5 / 6, rtol=1e-3, atol=1e-6)
    assert not moved["everyone"].allclose(moved["received"], rtol=1e-3, atol=1e-6)


def test_a_diverging_run_with_batchnorm_keeps_finite_statistics() -> None:
    settings = {"client.lr": 1e30, "client.local_steps": 3, "model.name": "residual", "model.width": 2, "rounds": 3}
    state, records = play({**settings, "model.blocks": [1], "data.clients": 3})
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.weights.values())
    assert any(record.rejected for record in records)


def test_rounds_are_counted_from_one_and_name_their_deadline() -> None:
    records = list(simulate(small_experiment({"method.deadline": 0.75}), dataset=small_data()))
    assert [record.round for record in records] == [1, 2, 3]
    assert [record.deadline_s for record in records] == [0.75] * 3
    assert [record.time_s for record in records] == [0.75, 1.5, 2.25]
