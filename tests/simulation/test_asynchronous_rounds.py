"""The event loop on times worked out by hand: when results arrive, how stale they are, and what the records say."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from asynchronous_cases import NEVER, log_results, scripted
from simulator_cases import RESIDUAL, play, same_weights, small_data, small_experiment

from salf.data import Dataset
from salf.errors import InvalidSetting
from salf.experiment.experiment import Experiment
from salf.methods import METHODS, FedAsync, FedBuff
from salf.runs.checkpoint import load_checkpoint, save_checkpoint
from salf.simulation.server_state import ActiveJob
from salf.simulation.simulator import Simulation

ASYNCHRONOUS = ("fedasync", "fedbuff")


def test_two_clients_of_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_results(monkeypatch, FedAsync)
    simulation = scripted((2.0, 3.0), {"method.name": "fedasync", "method.deadline": 5.0})
    size = sum(simulation.workload.costs.layer_bytes)
    state, first = simulation.play(simulation.initial_state())
    # At 2 client 0, at 3 client 1 (from version 0, which is 1 by then), at 4 client 0 (from 1, which is 2 by then).
    assert [result.staleness for result in log.results] == [0, 1, 1]
    assert (first.time_s, first.deadline_s, first.clients, set(first.contributors)) == (5.0, None, 5, {3})
    assert (first.depths, first.work_kept, first.engine) == ((2, 0, 0, 3), 1.0, "plain")
    assert (first.bytes_down, first.bytes_up, first.rejected) == (5 * size, 3 * size, 0)
    assert state.active_jobs is not None
    assert state.active_jobs.under_way == (ActiveJob(0, 3, 3, 4.0, 6.0, True), ActiveJob(1, 2, 2, 3.0, 6.0, True))
    state, second = simulation.play(state)
    # At 6 both, client 0 first: it began at 4 from version 3, client 1 at 3 from version 2. Then 8, 9 and, still, 10.
    assert [result.staleness for result in log.results[3:]] == [0, 2, 1, 1, 1]
    assert (second.time_s, second.clients, set(second.contributors)) == (10.0, 6, {5})
    assert state.active_jobs is not None
    assert [(active_job.client, active_job.began_s) for active_job in state.active_jobs.under_way] == [
        (0, 10.0),
        (1, 9.0),
    ]
    # The client that began as the second round ended receives its model in the third.
    assert second.bytes_down == 4 * size
    assert simulation.play(state)[1].bytes_down == (1 + 3) * size


def test_staleness_counts_moves_of_the_model_not_results(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_results(monkeypatch, FedBuff)
    simulation = scripted((2.0, 3.0), {"method.name": "fedbuff", "method.buffer": 2, "method.deadline": 6.0})
    state, record = simulation.play(simulation.initial_state())
    # Arrivals at 2, 3 (the server moves), 4 (begun at 2), 6 (client 0, begun at 4: the server moves), 6 (begun at 3).
    assert log.results == [(0, 0), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert state.active_jobs is not None
    assert (state.active_jobs.version, state.active_jobs.buffer.count, set(record.contributors)) == (2, 1, {5})
    assert state.active_jobs.buffer.scale == pytest.approx(1 / np.sqrt(2))


@pytest.mark.parametrize("method", ASYNCHRONOUS)
def test_results_at_the_same_time_follow_the_clients_numbers(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived: list[int] = []
    simulation = scripted((1.0,) * 4, {"method.name": method, "method.deadline": 3.0})
    tasks = simulation.sampler.tasks

    def logging(cohort, steps, proximal=0.0):  # type: ignore[no-untyped-def]
        arrived.extend(cohort.clients.tolist())
        return tasks(cohort, steps, proximal)

    monkeypatch.setattr(simulation.sampler, "tasks", logging)
    simulation.play(simulation.initial_state())
    assert arrived == [0, 1, 2, 3] * 3


@pytest.mark.parametrize("settings", [{}, RESIDUAL, {"client.local_steps": 3, "client.cohort": 4}])
def test_a_full_buffer_of_equal_clients_is_a_round_of_federated_averaging(settings: dict[str, object]) -> None:
    alike = {"devices.stragglers": 0.0, "rounds": 1, **settings}
    cohort = settings.get("client.cohort", 6)
    averaged, _ = play({**alike, "method.name": "fedavg", "engine": "plain"})
    buffered, records = play({**alike, "method.name": "fedbuff", "method.buffer": cohort})
    assert set(records[0].contributors) == {cohort}
    for name, tensor in averaged.weights.items():
        torch.testing.assert_close(buffered.weights[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ASYNCHRONOUS)
def test_a_client_that_never_answers_is_given_up_and_begins_again(method: str) -> None:
    simulation = scripted((2.0, 3.0), {"method.name": method, "method.deadline": 4.0}, silent=(1,), gives_up=2.5)
    state, record = simulation.play(simulation.initial_state())
    # Client 1 is given up at 2.5, having finished one layer; client 0 conveys at 2 and at 4.
    backward = simulation.workload.backward
    finished = 2 + backward[-1] / backward.sum()
    assert record.work_kept == pytest.approx(2 / finished)
    assert (record.clients, set(record.contributors), record.depths) == (4, {2}, (2, 0, 0, 2))
    assert state.active_jobs is not None
    assert state.active_jobs.under_way[1] == ActiveJob(
        1, 2, state.active_jobs.version - (method == "fedasync"), 2.5, 5.5, True
    )


@pytest.mark.parametrize("method", ASYNCHRONOUS)
def test_a_client_that_is_never_given_up_stays_away(method: str) -> None:
    simulation = scripted((2.0, 3.0), {"method.name": method, "method.deadline": 4.0}, silent=(0, 1))
    before = simulation.initial_state()
    state = before
    for number in (1, 2):
        state, record = simulation.play(state)
        assert (record.time_s, record.clients, set(record.contributors)) == (4.0 * number, 2, {0})
        assert (record.work_kept, record.depths) == (None, (2, 0, 0, 0))
    assert same_weights(state.weights, before.weights)
    assert state.active_jobs is not None
    assert [active_job.ends_s for active_job in state.active_jobs.under_way] == [NEVER, NEVER]
    assert not state.active_jobs.starts


def test_successors_are_drawn_among_the_idle_clients() -> None:
    experiment = small_experiment(
        {"data.clients": 20, "client.cohort": 3, "method.name": "fedbuff", "devices.kind": "exponential", "rounds": 40}
    )
    simulation = Simulation(experiment, dataset=small_data())
    state, begun = simulation.initial_state(), Counter[int]()
    first = simulation.sampler.draw_cohort(1).clients.tolist()
    for _ in range(experiment.rounds):
        state, record = simulation.play(state)
        assert state.active_jobs is not None
        at_work = [active_job.client for active_job in state.active_jobs.under_way]
        assert len(set(at_work)) == 3
        assert at_work == sorted(at_work)
        assert record.clients >= 3
        # One model for each version in use, and no other.
        assert set(state.active_jobs.starts) == {active_job.version for active_job in state.active_jobs.under_way}
    assert state.active_jobs is not None
    begun.update(state.active_jobs.begun)
    assert set(first) <= set(begun)
    assert set(begun) == set(range(20))
    # About 3 clients a round for 40 rounds, shared by 20: 6 each; one alone would have 120.
    assert max(begun.values()) < 20


def test_with_all_clients_at_work_the_same_client_begins_again() -> None:
    state, _ = play({"method.name": "fedasync", "devices.kind": "exponential", "rounds": 5})
    assert state.active_jobs is not None
    assert [active_job.client for active_job in state.active_jobs.under_way] == list(range(6))
    assert all(
        active_job.job == state.active_jobs.begun[active_job.client] for active_job in state.active_jobs.under_way
    )


def data_that_overflows() -> Dataset:
    """Data in which the examples of client 2 overflow in the first layer."""
    good = small_data()
    inputs = good.inputs.clone()
    partition = Simulation(small_experiment(), dataset=good).federation.partition
    inputs[torch.from_numpy(partition[2])] = torch.inf
    return replace(good, inputs=inputs)


@pytest.mark.parametrize("method", ASYNCHRONOUS)
def test_only_results_that_are_not_finite_are_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_results(monkeypatch, FedAsync if method == "fedasync" else FedBuff)
    simulation = scripted((1.0,) * 6, {"method.name": method, "method.deadline": 2.0}, dataset=data_that_overflows())
    state, record = simulation.play(simulation.initial_state())
    assert (record.rejected, set(record.contributors), len(log.results)) == (2, {10}, 10)
    assert record.work_kept == pytest.approx(10 / 12)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.weights.values())


@pytest.mark.parametrize("method", ASYNCHRONOUS)
def test_a_diverging_run_stays_finite(method: str) -> None:
    state, records = play({"client.lr": 1e30, "method.name": method, "rounds": 6})
    assert sum(record.rejected for record in records) > 0
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.weights.values())


@pytest.mark.parametrize("kind", ["uniform", "exponential", "physical"])
@pytest.mark.parametrize("method", ASYNCHRONOUS)
def test_a_run_goes_on_from_any_checkpoint_to_the_last_bit(method: str, kind: str, tmp_path: Path) -> None:
    model = {"model.name": "residual", "model.width": 2, "model.blocks": [1]}
    settings = {"method.name": method, "devices.kind": kind, "client.cohort": 4, "rounds": 3, "evaluate.every": 1}
    whole, records = play({**settings, **model})
    simulation = Simulation(small_experiment({**settings, **model}), dataset=small_data())
    state, again = simulation.initial_state(), []
    for number in range(3):
        state, record = simulation.play(state)
        again.append(record)
        path = tmp_path / f"state-{number}"
        save_checkpoint(path, state)
        written = path.read_bytes()
        state, _ = load_checkpoint(path)
        save_checkpoint(path, state)
        assert path.read_bytes() == written
    assert again == records
    assert same_weights(state.weights, whole.weights)


@pytest.mark.parametrize("method", ASYNCHRONOUS)
def test_equal_rounds_are_equal_times(method: str) -> None:
    settings = {"devices.kind": "physical", "rounds": 3}
    _, dropping = play({**settings, "method.name": "drop", "devices.stragglers": 0.5})
    _, arriving = play({**settings, "method.name": method, "devices.stragglers": 0.5})
    assert [record.time_s for record in arriving] == [record.time_s for record in dropping]


@pytest.mark.parametrize("method", ASYNCHRONOUS)
@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"engine": "fused"}, r"engine is 'fused', but the clients of '{}' train one by one; choose 'auto' or 'plain'"),
        ({"engine": "stacked"}, r"engine is 'stacked', but"),
        ({"server.optimizer": "adam"}, r"server\.\* is set, but .*; remove that section, or choose"),
        ({"server.momentum": 0.9, "engine": "fused"}, r"engine is 'fused'.*; server\.\* is set, but"),
    ],
)
def test_settings_of_other_methods_are_refused_with_a_remedy(
    method: str, settings: dict[str, object], problem: str
) -> None:
    with pytest.raises(InvalidSetting, match=problem.format(method)):
        small_experiment({"method.name": method, **settings})
    with pytest.raises(InvalidSetting, match=problem.format(method)):
        Experiment.load("digits", **settings).with_method(method)


def test_an_asynchronous_method_has_no_cohorts() -> None:
    simulation = Simulation(small_experiment({"method.name": "fedasync"}), dataset=small_data())
    with pytest.raises(
        InvalidSetting, match="the method 'fedasync' is asynchronous and has no cohorts; choose a synchronous one"
    ):
        simulation.tasks(simulation.initial_state())


@pytest.mark.parametrize("method", ASYNCHRONOUS)
def test_settings_that_other_methods_share_are_kept(method: str) -> None:
    experiment = small_experiment({"method.name": "drop", "method.deadline": 7.0}).with_method(method)
    assert experiment.method == METHODS[method](deadline=7.0)  # type: ignore[call-arg]
