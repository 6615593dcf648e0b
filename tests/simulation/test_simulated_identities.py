"""Without stragglers, or with time enough, every method is federated averaging, to the last bit."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from simulator_cases import NORMALIZED, RULES, play, same_weights, small_data, small_experiment

from salf.records.rounds import RoundRecord
from salf.simulation.server_state import ServerState
from salf.simulation.simulator import Simulation

SETUPS: dict[str, dict[str, Any]] = {
    "one step": {"client.lr": 0.3},
    "momentum": {"client.local_steps": 3, "client.momentum": 0.9, "client.weight_decay": 0.01},
    "batchnorm": {**NORMALIZED, "client.local_steps": 2, "client.momentum": 0.5, "data.clients": 4},
    "adam": {"client.optimizer": "adam", "client.lr": 0.01, "client.local_steps": 2},
    "by examples": {"data.size_sigma": 1.0, "method.weight_by_examples": True},
}


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("rule", RULES)
def test_without_stragglers_salf_is_federated_averaging(setup: str, rule: str) -> None:
    # What needs each client's own update is not computed by the engine that sums them, and rounds otherwise.
    engine = "stacked" if rule == "memory" else "auto"
    settings = {**SETUPS[setup], "devices.stragglers": 0.0, "engine": engine}
    expected, plain = _waiting_for_all(setup, engine)
    result, records = play(settings | {"method.name": "salf", "method.rule": rule})
    assert same_weights(result.weights, expected.weights)
    assert not same_weights(result.weights, _initial(settings))
    assert [record.time_s for record in records] == [record.time_s for record in plain]
    assert [record.contributors for record in records] == [record.contributors for record in plain]
    assert all(record.work_kept == 1 for record in records)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "devices",
    [
        {"devices.kind": "uniform", "devices.stragglers": 0.9},
        {"devices.kind": "exponential"},
        {"devices.kind": "physical", "devices.availability": "on-off"},
    ],
    ids=lambda devices: str(devices["devices.kind"]),
)
def test_with_an_enormous_deadline_salf_is_federated_averaging(devices: Mapping[str, Any], rule: str) -> None:
    settings = {**devices, **SETUPS["momentum"]}
    expected, plain = play(settings | {"method.name": "fedavg"})
    result, records = play(settings | {"method.name": "salf", "method.deadline": 1e12, "method.rule": rule})
    assert same_weights(result.weights, expected.weights)
    assert [record.time_s for record in records] == [record.time_s for record in plain]
    assert [record.deadline_s for record in records] == [1e12] * len(records)
    assert [record.deadline_s for record in plain] == [None] * len(plain)


def test_with_an_enormous_deadline_also_batchnorm_is_averaged_alike() -> None:
    settings = {**SETUPS["batchnorm"], "devices.stragglers": 1.0}
    expected, _ = play(settings | {"method.name": "fedavg"})
    result, _ = play(settings | {"method.name": "salf", "method.deadline": 1e9})
    assert same_weights(result.weights, expected.weights)


@pytest.mark.parametrize("normalise", ["received", "everyone"])
def test_dropping_no_client_is_federated_averaging(normalise: str) -> None:
    settings = {**SETUPS["batchnorm"], "devices.stragglers": 0.0}
    expected, _ = play(settings | {"method.name": "fedavg"})
    result, _ = play(settings | {"method.name": "drop", "method.normalise": normalise})
    assert same_weights(result.weights, expected.weights)


@pytest.mark.parametrize("rule", RULES)
def test_normalising_equal_steps_changes_nothing_but_rounding(rule: str) -> None:
    settings = {"client.local_steps": 3, "devices.stragglers": 0.0}
    expected, _ = play(settings | {"method.name": "fedavg"})
    result, _ = play(settings | {"method.rule": {"name": rule, "normalise": "steps"}})
    for name, tensor in expected.weights.items():
        assert result.weights[name].allclose(tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["salf", "drop"])
@pytest.mark.parametrize(
    "settings",
    [
        {"method.deadline": 1e-9},
        {"method.deadline": 1e-9, "devices.kind": "physical"},
        {"devices.stragglers": 1.0, "devices.lowest_depth": 0, "method.deadline": 1e-3},
    ],
    ids=["tiny deadline", "tiny deadline on physical devices", "depth 0"],
)
def test_a_run_without_finished_work_changes_nothing(settings: dict[str, Any], method: str) -> None:
    settings = {**SETUPS["batchnorm"], **settings, "method.name": method}
    state, records = play(settings)
    assert same_weights(state.weights, _initial(settings))
    assert {record.contributors for record in records} == {(0,) * len(records[0].contributors)}
    assert all(record.work_kept is None for record in records)


@pytest.mark.parametrize("rule", RULES)
def test_a_round_without_contributors_changes_no_bit(rule: str) -> None:
    simulation = Simulation(small_experiment({**NORMALIZED, "method.rule": rule}), dataset=small_data())
    state, _ = simulation.play(simulation.initial_state())
    waiting = Simulation(
        small_experiment({**NORMALIZED, "method.rule": rule, "method.deadline": 1e-9}), dataset=small_data()
    )
    after, _ = waiting.play(state)
    assert same_weights(after.weights, state.weights)
    assert after.memory.keys() == state.memory.keys()
    assert after.time_s > state.time_s


@pytest.mark.parametrize("method", ["fedavg", "salf", "drop"])
def test_clients_that_never_answer_change_nothing(method: str) -> None:
    settings = {"devices.stragglers": 1.0, "devices.drawn": "persistent", "devices.lowest_depth": 0, "rounds": 2}
    _, records = play({**settings, "method.name": method, "data.clients": 1, "seed": _seed_of_depth_0()})
    assert all(not any(record.contributors) for record in records)
    layers = len(records[0].contributors)
    assert [record.time_s for record in records] == ([layers, 2 * layers] if method == "fedavg" else [1.0, 2.0])


@cache
def _waiting_for_all(setup: str, engine: str) -> tuple[ServerState, list[RoundRecord]]:
    return play({**SETUPS[setup], "devices.stragglers": 0.0, "method.name": "fedavg", "engine": engine})


@cache
def _seed_of_depth_0() -> int:
    """A seed with which the only client is of depth 0."""
    settings = {"devices.stragglers": 1.0, "devices.drawn": "persistent", "devices.lowest_depth": 0, "data.clients": 1}
    for seed in range(100):
        _, (record,) = play({**settings, "seed": seed, "rounds": 1})
        if not any(record.contributors):
            return seed
    raise AssertionError("in a hundred seeds no depth was 0")


def _initial(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return Simulation(small_experiment(settings), dataset=small_data()).initial_state().weights
