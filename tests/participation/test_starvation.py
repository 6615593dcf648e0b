"""Layers that starve are reported with their clients; others are not."""

import warnings

import numpy as np
import pytest
from hypothesis import given, strategies as st
from simulator_cases import small_data, small_experiment

from salf import run_experiment, simulate, theory
from salf.participation.observed import Chances, ObservedReach
from salf.participation.starvation import (
    FIRST_LOOK,
    StarvationMonitor,
    StarvationWarning,
    Starving,
    describe_starvation,
    left_behind,
    starving,
)
from salf.simulation.simulator import Simulation

LAYERS = ("conv1", "conv2", "fc")
GRADED: dict[str, object] = {"devices.kind": "graded", "data.clients": 10, "client.batch_size": 8, "rounds": 60}


def seen(chances: np.ndarray, rounds: int, seed: int = 0) -> ObservedReach:
    """What is observed of clients that reach layers by chance, nested as in backpropagation."""
    rng, observed = np.random.default_rng(seed), ObservedReach(chances.shape[1])
    for _ in range(rounds):
        observed = observed.observe(np.arange(len(chances)), rng.random((len(chances), 1)) < chances)
    return observed


def test_equal_chances_leave_no_client_behind_and_a_slow_client_is_noticed() -> None:
    alike = np.tile([0.2, 0.5, 0.9], (30, 1))
    # Half of the usual frequency is so far below 0.2 that chance does not bring any of 90 frequencies there.
    assert not any(left_behind(seen(alike, rounds, seed)) for seed in range(40) for rounds in (10, 50, 200))
    slow = alike.copy()
    slow[7, 0] = 0.0
    assert all(left_behind(seen(slow, 200, seed)) for seed in range(40))
    assert not left_behind(ObservedReach(3))


def test_a_layer_that_almost_no_client_reaches_leaves_clients_behind() -> None:
    none, one = np.tile([0.0, 0.5, 0.9], (30, 1)), np.tile([0.0, 0.5, 0.9], (30, 1))
    one[0, 0] = 1.0
    assert left_behind(seen(none, 9))
    assert not left_behind(seen(one, 100))
    assert left_behind(seen(one, 140))


def test_clients_that_never_get_there_are_named() -> None:
    chances = np.ones((20, 3))
    chances[:8, 0], chances[:3, 1], chances[0, 2] = 0.0, 0.005, 0.0
    found = starving(seen(chances, 200), LAYERS, asked=20)
    assert found == (
        Starving("conv1", tuple(range(8)), 20, unreached=False),
        Starving(
            "conv2", (0, 1, 2), 20, unreached=False
        ),  # one client that misses a layer, as in the third, is no starvation
    )
    text = describe_starvation(found)
    assert "conv1 (almost never reached by 8 of 20 clients: 0–7), conv2 (" in text
    assert "salfplus" in text


def test_a_layer_that_no_client_reaches_starves() -> None:
    chances = np.tile([0.02, 0.5, 1.0], (20, 1))  # 0.98^20 = 0.67
    [found] = starving(seen(chances, 400), LAYERS, asked=20)
    assert (found.layer, found.unreached) == ("conv1", True)


@pytest.mark.parametrize("layers", [4, 8, 16])
def test_the_paper_s_stragglers_do_not_starve(layers: int) -> None:
    slow = theory.reach_probability(depth=theory.UniformDepth(), num_layers=layers)
    chances = np.concatenate([np.ones((3, layers)), np.tile(slow, (27, 1))])
    names = [f"layer{number}" for number in range(layers)]
    for seed in range(5):
        assert starving(seen(chances, 60, seed), names, asked=30) == ()


def test_clients_with_few_rounds_do_not_count() -> None:
    observed = ObservedReach(1)
    for number in range(500):
        observed = observed.observe([number % 100, 100 + number % 4], [[False], [True]])
    assert starving(observed, ["fc"], asked=2) == ()  # a hundred clients that were asked five times each
    assert starving(ObservedReach(1), ["fc"], asked=2) == ()


def test_the_monitor_checks_after_60_120_240_rounds_and_reports_each_layer_once() -> None:
    chances = np.ones((10, 3))
    chances[:5, 0] = 0.0
    monitor, observed = StarvationMonitor(LAYERS), seen(chances, 300)
    looked = [number for number in range(1, 1000) if StarvationMonitor(LAYERS).newly_starving(number, observed, 10)]
    assert looked == [60, 120, 240, 480, 960]
    with pytest.warns(StarvationWarning, match="layer conv1 .* starves"):
        monitor.warn(60, observed, 10)
    chances[:5, 1] = 0.0
    assert [one.layer for one in monitor.newly_starving(120, seen(chances, 300), 10)] == ["conv2"]


def test_a_run_warns_and_says_so_at_its_end() -> None:
    experiment = small_experiment(GRADED)
    with pytest.warns(StarvationWarning, match=r"fc1 \(almost never reached by 8 of 10 clients: 0–7\)"):
        run = run_experiment(experiment, dataset=small_data())
    assert [one.layer for one in run.starving] == ["fc1", "fc2", "fc3"]
    assert run.starving[0].absent == tuple(range(8))
    with pytest.warns(StarvationWarning, match="salfplus"):
        assert len([*simulate(experiment, dataset=small_data())]) == FIRST_LOOK


def test_what_is_recommended_helps() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = run_experiment(small_experiment({**GRADED, "method.name": "salfplus"}), dataset=small_data())
    assert run.starving == ()


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12), st.integers(1, 3))
def test_chances_are_summed_up_client_by_client(rows: list[tuple[float, float]], enough: int) -> None:
    chances = Chances.of(np.array(rows), enough)
    for layer, column in enumerate(zip(*rows, strict=True)):
        counts = [1.0]  # the chances of 0, 1, … contributors
        for chance in column:
            counts = [
                stay * (1 - chance) + come * chance for stay, come in zip([*counts, 0.0], [0.0, *counts], strict=True)
            ]
        assert chances.empty[layer] == pytest.approx(sum(counts[:enough]), abs=2e-6)
        assert chances.mean[layer] == pytest.approx(sum(column) / len(column), abs=2e-6)
        assert chances.least[layer] == pytest.approx(min(column), abs=2e-6)
    assert Chances.of(np.empty((0, 2))) == Chances()


@pytest.mark.parametrize("method", ["salf", "drop", "fedavg", "memory"])
def test_records_tell_what_was_known_before_the_round(method: str) -> None:
    simulation = Simulation(small_experiment({**GRADED, "method.name": method, "rounds": 5}), dataset=small_data())
    state = simulation.initial_state()
    while state.round < 5:
        before = state.observed.probability(np.arange(10))
        state, record = simulation.play(state)
        assert record.reach == pytest.approx(before.mean(axis=0), abs=1e-6)
        assert record.least_reach == pytest.approx(before.min(axis=0), abs=1e-6)
        assert record.empty == pytest.approx((1 - before).prod(axis=0), abs=1e-6)
        assert (record.round > 1) or set(record.reach) == {1.0}


def test_records_tell_the_true_chances_where_the_method_knows_them() -> None:
    settings = {"devices.kind": "exponential", "method.reach_from": "known", "method.deadline": 1.5, "data.clients": 4}
    [record, *_] = simulate(small_experiment(settings), dataset=small_data())
    reach = theory.reach_probability(depth=theory.ExponentialDepth(1.0, 1.5), num_layers=3)
    assert record.reach == pytest.approx(reach, abs=1e-6)
    assert record.empty == pytest.approx((1 - reach) ** 4, abs=1e-6)
