"""What the competing synchronous methods make of hand-made times, and their rules by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulator_cases import everyone, play, same_weights, small_data, small_experiment, workload

from salf.aggregation.aggregation import Aggregation
from salf.aggregation.rules import Contributors
from salf.devices import CompletionTimes, ExponentialLayers, Physical, UniformDepthDevices
from salf.methods import FedAvg, FedNova, FedProx, OverSelection, TimelyFL
from salf.simulation.simulator import Simulation
from salf.values import Floats

NEVER = np.inf
READY = np.array(
    [
        [[3.0, 2.0, 1.0], [6.0, 5.0, 4.0]],
        [[9.0, 6.0, 3.0], [18.0, 15.0, 12.0]],
        [[4.0, 3.0, 2.0], [7.9, 6.0, 5.0]],
        [[NEVER] * 3] * 2,
    ]
)


def hand_made(ready: Floats = READY) -> CompletionTimes:
    conveyed = ready + 0.5
    return CompletionTimes(ready, conveyed, whole=conveyed[:, -1, 0], give_up_seconds=30.0)


def test_over_selection_keeps_the_first() -> None:
    schedule = OverSelection(ask=2.0).schedule([hand_made()], usual_seconds=1.0)
    assert schedule.steps.tolist() == [[2, 2, 2], [0, 0, 0], [2, 2, 2], [0, 0, 0]]
    assert (schedule.seconds, schedule.deadline_seconds) == (8.4, None)
    assert schedule.finished.tolist() == [[2, 2, 2], [0, 1, 1], [2, 2, 2], [0, 0, 0]]
    # ⌈4 / 1.3⌉ = 4: whoever never answers is given up.
    assert OverSelection().schedule([hand_made()], 1.0).seconds == 30.0
    # ⌈30 / 1.3⌉ = 24 of thirty.
    many = hand_made(np.arange(1.0, 31.0)[:, None, None])
    assert OverSelection().schedule([many], 1.0).steps.sum() == 24
    equal = hand_made(np.ones((4, 1, 1)))
    assert OverSelection(ask=2.0).schedule([equal], 1.0).steps.ravel().tolist() == [1, 1, 0, 0]


def test_asking_for_no_more_than_needed_is_waiting_for_all() -> None:
    one, other = (kind.schedule([hand_made()], 1.0) for kind in (OverSelection(ask=1.0), FedAvg()))
    assert (one.steps.tolist(), one.seconds) == (other.steps.tolist(), other.seconds)


@pytest.mark.parametrize("method", [FedProx(deadline=8.0), FedNova(deadline=8.0)])
def test_stragglers_convey_whole_steps(method: FedProx | FedNova) -> None:
    schedule = method.schedule([hand_made()], usual_seconds=99.0)
    assert schedule.steps.tolist() == [[2, 2, 2], [0, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert schedule.finished.tolist() == [[2, 2, 2], [0, 1, 1], [2, 2, 2], [0, 0, 0]]
    assert (schedule.seconds, schedule.deadline_seconds) == (8.0, 8.0)


def test_timelyfl_gives_each_client_the_layers_it_has_time_for() -> None:
    method = TimelyFL(deadline=8.0)
    workloads = method.workloads(workload(3, local_steps=2))
    assert [one.depth for one in workloads] == [1, 2, 3]
    # With d of 3 layers trained, both steps take 2, 4 and 6 seconds times the client's slowness.
    slowness = np.array([1.0, 1.5, 3.0, 9.0])
    options = []
    for depth in (1, 2, 3):
        done = np.minimum([3, 2, 1], depth)  # frozen layers are passed by as the last trained one completes
        steps = np.array([[0.0], [1.0]]) * depth + done
        ready = slowness[:, None, None] * steps
        options.append(CompletionTimes(ready, ready, ready[:, -1].max(axis=1)))
    schedule = method.schedule(options, usual_seconds=1.0)
    assert schedule.steps.tolist() == [[2, 2, 2], [0, 2, 2], [0, 0, 2], [0, 0, 0]]
    assert schedule.workloads is not None
    assert schedule.workloads.tolist() == [2, 1, 0, 0]
    assert schedule.finished.tolist() == [[2, 2, 2], [0, 2, 2], [0, 0, 2], [0, 0, 0]]
    assert schedule.seconds == 8.0


@pytest.mark.parametrize(
    "devices", [UniformDepthDevices(stragglers=0.5), ExponentialLayers(), Physical(), Physical(jitter=0.0)]
)
def test_a_shallower_job_takes_less_of_everything(devices: UniformDepthDevices | ExponentialLayers | Physical) -> None:
    whole = workload(4, local_steps=3)
    cohort = everyone(20)
    full = devices.times(whole, cohort)
    before = np.zeros(20)
    for depth in range(1, 5):
        times = devices.times(replace(whole, depth=depth), cohort)
        assert (times.whole > before).all()
        before = times.whole
        # The first step goes as far as ever, up to where it ends.
        assert times.sent[:, 0, -depth:] == pytest.approx(full.sent[:, 0, -depth:])
        assert (times.ready[:, 1, -1] <= full.ready[:, 1, -1]).all()
    assert (before == full.whole).all()


def test_a_narrower_model_takes_its_share() -> None:
    whole = workload(3)
    costs = whole.costs
    half = replace(costs, forward=costs.forward / 2, backward=tuple(cost / 2 for cost in costs.backward))
    narrow = replace(whole, costs=half, whole=costs)
    for devices in (UniformDepthDevices(stragglers=0.0), ExponentialLayers()):
        ratio = devices.times(narrow, everyone(5)).whole / devices.times(whole, everyone(5)).whole
        assert ratio == pytest.approx(np.full(5, 0.5))
    compute = Physical(bandwidth_bits_per_second=1e15)
    assert compute.typical_seconds(narrow) == pytest.approx(compute.typical_seconds(whole) / 2)


def test_timelyfl_with_time_for_everything_is_federated_averaging() -> None:
    settings = {"client.local_steps": 2, "devices.stragglers": 0.0, "engine": "plain"}
    timely, _ = play({**settings, "method.name": "timelyfl"})
    waiting, _ = play({**settings, "method.name": "fedavg"})
    assert same_weights(timely.weights, waiting.weights)


@pytest.mark.parametrize("engine", ["plain", "stacked"])
def test_the_proximal_term_pulls_back_by_hand(engine: str) -> None:
    """Two steps of SGD on the same gradients: w₂ = w₁ − η (g(w₁) + μ (w₁ − w₀))."""
    mu, lr = 0.7, 0.2
    base = {
        "client.local_steps": 2,
        "client.lr": lr,
        "devices.stragglers": 0.0,
        "rounds": 1,
        "data.clients": 1,
        "engine": engine,
        "method.name": "fedprox",
    }
    free = Simulation(small_experiment({**base, "method.mu": 0.0}), dataset=small_data())
    start = free.initial_state()
    two, _ = free.play(start)
    held, _ = Simulation(small_experiment({**base, "method.mu": mu}), dataset=small_data()).play(start)
    tasks = free.tasks(start)
    first = replace(tasks, steps=np.ones_like(tasks.steps))
    running = Aggregation(start.weights, free.layers, Contributors())
    free.federation.engine.train_cohort(start.weights, first, running)
    after_one = running.finish(1).state
    for layer in free.layers:
        for name in layer.parameters:
            expected = two.weights[name] - lr * mu * (after_one[name] - start.weights[name])
            torch.testing.assert_close(held.weights[name], expected, rtol=1e-5, atol=1e-7)


def test_fednova_weighs_nobody_for_doing_more_steps() -> None:
    """Clients of 1 and 3 steps: each Δ over its steps, times the mean number of steps, 2."""
    settings = {
        "client.local_steps": 3,
        "data.clients": 2,
        "devices.kind": "physical",
        "devices.speed_sigma": 1.0,
        "rounds": 1,
        "engine": "plain",
    }
    nova = small_experiment({**settings, "method.name": "fednova"})
    simulation = Simulation(nova, dataset=small_data())
    start = simulation.initial_state()
    tasks = replace(simulation.tasks(start), steps=np.array([[1] * 3, [3] * 3]))

    def moved(rule: Contributors, momentum: float = 0.0) -> dict[str, torch.Tensor]:
        running = Aggregation(start.weights, simulation.layers, rule, momentum=momentum)
        simulation.federation.engine.train_cohort(start.weights, tasks, running)
        return running.finish(2).state

    def alone(position: int) -> dict[str, torch.Tensor]:
        only = replace(tasks, steps=tasks.steps * (np.arange(2) == position)[:, None])
        running = Aggregation(start.weights, simulation.layers, Contributors())
        simulation.federation.engine.train_cohort(start.weights, only, running)
        return running.finish(2).state

    one, three = alone(0), alone(1)
    normalised, heavy = moved(Contributors(normalise="steps")), moved(Contributors(normalise="steps"), momentum=0.5)
    for name, old in start.weights.items():
        deltas = one[name] - old, three[name] - old
        expected = old + 2 * (deltas[0] / 1 + deltas[1] / 3) / 2
        torch.testing.assert_close(normalised[name], expected, rtol=1e-5, atol=1e-7)
        # With momentum ½ three steps count 1.75 + 1.5 + 1 = 4.25, and the mean is 2.625.
        expected = old + 2.625 * (deltas[0] / 1 + deltas[1] / 4.25) / 2
        torch.testing.assert_close(heavy[name], expected, rtol=1e-5, atol=1e-7)
