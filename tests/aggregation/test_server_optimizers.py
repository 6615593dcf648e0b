"""The server's optimizers: numbers by hand, and what happens to a layer that no client sent."""

import math
from typing import Any, cast

import pytest
import torch
from simulator_cases import RESIDUAL, play, same_weights, small_data, small_experiment

from salf.aggregation.server_optimizer import OptimizerState, ServerOptimizer
from salf.errors import InvalidSetting
from salf.simulation.simulator import Simulation


def two_steps(server: ServerOptimizer, changes: tuple[float, float]) -> float:
    weights, state = {"w": torch.zeros(1, dtype=torch.float64)}, cast("OptimizerState", {})
    for change in changes:
        weights, state = server.step(weights, {"w": weights["w"] + change}, ["w"], state)
    return weights["w"].item()


def test_momentum_by_hand() -> None:
    server = ServerOptimizer(lr=0.5, momentum=0.9)
    assert two_steps(server, (1.0, 2.0)) == pytest.approx(0.5 * 1.0 + 0.5 * (0.9 * 1.0 + 2.0))


def test_adam_by_hand() -> None:
    server = ServerOptimizer(optimizer="adam", lr=0.1, beta1=0.5, beta2=0.75, tau=0.1)
    # v: 0.01 → 0.75 · 0.01 + 0.25 · 1 → 0.75 · that + 0.25 · 4; m: 0.5 → 0.5 · 0.5 + 0.5 · 2
    first = 0.75 * 0.01 + 0.25
    second = 0.75 * first + 1.0
    expected = 0.1 * 0.5 / (math.sqrt(first) + 0.1) + 0.1 * 1.25 / (math.sqrt(second) + 0.1)
    assert two_steps(server, (1.0, 2.0)) == pytest.approx(expected)


def test_yogi_by_hand() -> None:
    server = ServerOptimizer(optimizer="yogi", lr=0.1, beta1=0.5, beta2=0.75, tau=0.1)
    # v grows while the square is larger than it (0.01 < 1), and shrinks when it is smaller (0.26 > 0.04).
    first = 0.01 + 0.25 * 1.0
    second = first - 0.25 * 0.04
    expected = 0.1 * 0.5 / (math.sqrt(first) + 0.1) + 0.1 * 0.35 / (math.sqrt(second) + 0.1)
    assert two_steps(server, (1.0, 0.2)) == pytest.approx(expected)


def test_by_default_the_aggregate_is_the_model_to_the_last_bit() -> None:
    plain, _ = play({})
    named, _ = play({"server.optimizer": "sgd", "server.lr": 1.0, "server.momentum": 0.0})
    assert same_weights(plain.weights, named.weights)
    assert plain.optimizer == {}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "yogi"])
def test_a_layer_that_nobody_conveyed_neither_moves_nor_forgets(optimizer: str) -> None:
    settings: dict[str, Any] = {
        **RESIDUAL,
        "server.optimizer": optimizer,
        "server.lr": 0.3,
        "devices.stragglers": 1.0,
        "devices.lowest_depth": 0,
        "devices.drawn": "round",
        "data.clients": 2,
    }
    if optimizer == "sgd":
        settings["server.momentum"] = 0.9
    simulation = Simulation(small_experiment({**settings, "rounds": 12}), dataset=small_data())
    state, stayed, moved = simulation.initial_state(), 0, 0
    for _ in range(12):
        after, record = simulation.play(state)
        for layer, count in zip(simulation.layers, record.contributors, strict=True):
            for name in (*layer.parameters, *(() if count else layer.buffers)):
                same = torch.equal(after.weights[name], state.weights[name])
                known = state.optimizer.get(name), after.optimizer.get(name)
                assert same or count  # the gradient of a ReLU that is off is zero
                assert (known[0] is known[1]) == (count == 0)
                stayed, moved = stayed + (count == 0), moved + (count > 0)
        state = after
    assert stayed > 50
    assert moved > 50


def test_tied_weights_stay_tied() -> None:
    before = {"a": torch.zeros(2), "b": torch.zeros(2)}
    server = ServerOptimizer(lr=0.5)
    after, _ = server.step(before, {"a": torch.ones(2), "b": torch.ones(2)}, ["a"], {}, {"b": "a"})
    assert after["a"].tolist() == after["b"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.lr", 0.0),
        ("server.momentum", 1.0),
        ("server.tau", 0.0),
        ("server.beta2", -0.1),
        ("server.optimizer", "x"),
    ],
)
def test_wrong_settings_are_named(key: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=key):
        small_experiment({key: value})
