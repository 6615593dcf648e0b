"""The round loop: what it yields and when, what it refuses, and what its results depend on."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from simulator_cases import small_data, small_experiment

from salf import run_experiment, simulate
from salf.data import Dataset
from salf.errors import InvalidSetting
from salf.methods import FedAsync, FedAvg
from salf.records import RoundRecord
from salf.simulation import ServerState, Simulation

DATA = small_data(examples=150)


@pytest.mark.parametrize("devices", ["uniform", "exponential", "physical"])
def test_equal_seeds_give_equal_records(devices: str) -> None:
    settings = {"devices.kind": devices, "data.clients": 8, "client.cohort": 5, "evaluate.every": 1}

    first, again, other = (
        list(simulate(small_experiment({**settings, "seed": seed}), dataset=DATA)) for seed in (1, 1, 2)
    )
    assert first == again
    assert [record.loss for record in first] != [record.loss for record in other]


def test_global_random_states_neither_matter_nor_change() -> None:
    experiment = small_experiment({"evaluate.every": 1})
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before, known = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    first = list(simulate(experiment, dataset=DATA))
    assert torch.equal(before, torch.get_rng_state())
    assert str(known) == str(np.random.get_state())  # noqa: NPY002
    torch.manual_seed(2)
    assert list(simulate(experiment, dataset=DATA)) == first


def test_a_round_is_played_when_its_record_is_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[int] = []
    play_one = Simulation.play

    def counting(simulation: Simulation, state: ServerState) -> tuple[ServerState, RoundRecord]:
        played.append(state.round + 1)
        return play_one(simulation, state)

    monkeypatch.setattr(Simulation, "play", counting)
    records = simulate(small_experiment({"rounds": 10**6}), dataset=DATA)
    assert isinstance(records, Iterator)
    assert played == []
    assert [next(records).round, next(records).round] == [1, 2]
    assert played == [1, 2]


def test_the_model_is_tested_when_it_should_be() -> None:
    def evaluated(every: int) -> list[int]:
        records = simulate(small_experiment({"rounds": 5, "evaluate.every": every}), dataset=DATA)
        return [record.round for record in records if record.accuracy is not None and record.loss is not None]

    assert evaluated(1) == [1, 2, 3, 4, 5]
    assert evaluated(2) == [2, 4, 5]
    assert evaluated(10) == [5]


def test_an_earlier_state_can_be_played_again() -> None:
    simulation = Simulation(small_experiment({"method.rule": "memory", "evaluate.every": 1}), dataset=DATA)
    first, _ = simulation.play(simulation.initial_state())
    second, record = simulation.play(first)
    simulation.play(second)
    assert simulation.play(first)[1] == record
    assert (first.round, second.round) == (1, 2)


def test_the_model_learns() -> None:
    easy = Dataset.from_tensors(DATA.inputs, DATA.labels, DATA.inputs, DATA.labels)
    records = list(simulate(small_experiment({"rounds": 40, "evaluate.every": 40}), dataset=easy))
    assert records[-1].accuracy is not None
    assert records[-1].accuracy > 0.9


def test_a_run_continues_from_any_state() -> None:
    simulation = Simulation(small_experiment({"evaluate.every": 1}), dataset=DATA)
    first, second, third = simulation.run()
    assert [record for _, record in simulation.run(first[0])] == [second[1], third[1]]
    assert list(simulation.run(third[0])) == []


def test_the_loop_is_the_same_for_simulate_and_run_experiment() -> None:
    experiment = small_experiment({"method.rule": "memory", "evaluate.every": 1})
    assert list(run_experiment(experiment, dataset=DATA).records) == list(simulate(experiment, dataset=DATA))


def test_a_round_without_an_end_is_refused() -> None:
    endless = small_experiment({"devices.seconds": 1e308, "devices.stragglers": 0.0})
    records = simulate(endless, dataset=DATA)
    assert next(records).round == 1
    with pytest.raises(InvalidSetting, match="round 2 never ends; choose faster devices, or a shorter deadline"):
        next(records)
    with pytest.raises(InvalidSetting, match="round 2 never ends"):
        run_experiment(endless, dataset=DATA)


@pytest.mark.parametrize("method", [FedAvg(), FedAsync(alpha=0.4)])
def test_a_method_can_replace_that_of_the_experiment(method: FedAvg | FedAsync) -> None:
    experiment = small_experiment({"evaluate.every": 1})
    expected = list(simulate(small_experiment({"method": vars(method), "evaluate.every": 1}), dataset=DATA))
    assert list(simulate(experiment, method=method, dataset=DATA)) == expected
    run = run_experiment(experiment, method=method, dataset=DATA)
    assert (run.experiment.method, list(run.records)) == (method, expected)


def test_a_method_that_does_not_fit_the_experiment_is_refused() -> None:
    experiment = small_experiment({"engine": "fused"})
    with pytest.raises(InvalidSetting, match=r"^engine is 'fused', but .*; choose 'auto' or 'plain'$"):
        next(simulate(experiment, method=FedAsync(), dataset=DATA))


@pytest.mark.parametrize("start", [simulate, run_experiment])
def test_values_of_a_wrong_type_are_refused(start: Callable[..., Any]) -> None:
    experiment = small_experiment()
    wrong: list[tuple[object, dict[str, object], str]] = [
        ("digits", {}, "experiment is of type str; give an Experiment, such as"),
        (experiment, {"method": "fedavg"}, "method is of type str; give a method that is built already, such as"),
        (experiment, {"method": FedAvg}, "method is the class FedAvg; give a method that is built already"),
        (experiment, {"model": "mlp", "dataset": DATA}, "model is of type str; give an nn.Module, already built"),
    ]
    for given, options, problem in wrong:
        with pytest.raises(InvalidSetting, match=problem):
            list(start(given, **options))
