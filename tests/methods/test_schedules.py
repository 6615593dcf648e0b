"""What each method decides on hand-made times: which steps count, how long the round lasts, and the chances."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulator_cases import everyone, small_data, small_experiment, workload

from salf.aggregation.rules import Contributors, Corrected, Everyone, InverseProbability
from salf.devices import CompletionTimes, Devices, ExponentialLayers, Physical, UniformDepthDevices
from salf.errors import InvalidSetting
from salf.methods import METHODS, DropStragglers, FedAvg, RoundContext, Salf, SynchronousMethod
from salf.participation.observed import ObservedReach
from salf.simulation.simulator import Simulation
from salf.values import Floats

NEVER = np.inf
SYNCHRONOUS = {name: method for name, method in METHODS.items() if issubclass(method, SynchronousMethod)}


def hand_made() -> CompletionTimes:
    """Three layers, two steps, four clients: a fast one, a slow one, one that only just misses, one that is gone."""
    ready = np.array(
        [
            [[3.0, 2.0, 1.0], [6.0, 5.0, 4.0]],
            [[9.0, 6.0, 3.0], [18.0, 15.0, 12.0]],
            [[4.0, 3.0, 2.0], [7.9, 6.0, 5.0]],
            [[NEVER] * 3] * 2,
        ]
    )
    conveyed = ready + 0.5
    return CompletionTimes(ready, conveyed, whole=conveyed[:, -1, 0], give_up_seconds=30.0)


def test_salf_counts_every_layer_conveyed_by_the_deadline() -> None:
    schedule = Salf(deadline=8.0).schedule([hand_made()], usual_seconds=99.0)
    assert schedule.steps.tolist() == [[2, 2, 2], [0, 1, 1], [1, 2, 2], [0, 0, 0]]
    assert schedule.finished.tolist() == [[2, 2, 2], [0, 1, 1], [2, 2, 2], [0, 0, 0]]
    assert (schedule.seconds, schedule.deadline_seconds) == (8.0, 8.0)


def test_dropping_counts_whole_jobs_only() -> None:
    schedule = DropStragglers(deadline=8.0).schedule([hand_made()], usual_seconds=99.0)
    assert schedule.steps.tolist() == [[2, 2, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert schedule.finished.tolist() == [[2, 2, 2], [0, 1, 1], [2, 2, 2], [0, 0, 0]]
    assert (schedule.seconds, schedule.deadline_seconds) == (8.0, 8.0)
    later = DropStragglers(deadline=8.4).schedule([hand_made()], usual_seconds=99.0)
    assert later.steps.tolist() == [[2, 2, 2], [0, 0, 0], [2, 2, 2], [0, 0, 0]]


@pytest.mark.parametrize("method", [Salf(), DropStragglers()])
def test_the_usual_time_is_the_deadline_of_a_method_without_one(method: SynchronousMethod) -> None:
    schedule = method.schedule([hand_made()], usual_seconds=7.0)
    assert (schedule.seconds, schedule.deadline_seconds) == (7.0, 7.0)
    assert schedule.steps[0].tolist() == [2, 2, 2]


def test_time_on_the_dot_is_in_time() -> None:
    assert Salf(deadline=6.5).schedule([hand_made()], 1.0).steps[0].tolist() == [2, 2, 2]
    assert Salf(deadline=np.nextafter(6.5, 0)).schedule([hand_made()], 1.0).steps[0].tolist() == [1, 2, 2]
    assert DropStragglers(deadline=6.5).schedule([hand_made()], 1.0).steps[0].tolist() == [2, 2, 2]


@pytest.mark.parametrize("kind", [Salf, DropStragglers])
def test_a_round_ends_when_everyone_is_done(kind: type[Salf | DropStragglers]) -> None:
    times = hand_made()
    here = CompletionTimes(times.ready[:3], times.sent[:3], times.whole[:3], times.give_up_seconds)
    schedule = kind(deadline=100.0).schedule([here], usual_seconds=1.0)
    assert (schedule.seconds, schedule.deadline_seconds) == (18.5, 100.0)
    assert (schedule.steps == 2).all()
    # Who never answers is waited for until the deadline, not given up: the deadline is what the method is about.
    assert kind(deadline=100.0).schedule([times], usual_seconds=1.0).seconds == 100.0


def test_federated_averaging_waits_for_all_and_skips_those_who_never_answer() -> None:
    schedule = FedAvg().schedule([hand_made()], usual_seconds=1.0)
    assert schedule.steps.tolist() == [[2, 2, 2], [2, 2, 2], [2, 2, 2], [0, 0, 0]]
    assert schedule.finished.tolist() == schedule.steps.tolist()
    assert (schedule.seconds, schedule.deadline_seconds) == (30.0, None)
    times = hand_made()
    answering = CompletionTimes(times.ready[:2], times.sent[:2], times.whole[:2], times.give_up_seconds)
    assert FedAvg().schedule([answering], usual_seconds=1.0).seconds == 18.5


def test_a_client_that_does_half_and_is_gone_counts_for_salf_alone() -> None:
    ready = np.array([[[NEVER, 2.0, 1.0]]])
    times = CompletionTimes(ready, ready, np.array([NEVER]), give_up_seconds=50.0)
    assert Salf(deadline=5.0).schedule([times], 1.0).steps.tolist() == [[0, 1, 1]]
    assert DropStragglers(deadline=5.0).schedule([times], 1.0).steps.tolist() == [[0, 0, 0]]
    waiting = FedAvg().schedule([times], 1.0)
    assert (waiting.steps.tolist(), waiting.finished.tolist(), waiting.seconds) == ([[0, 0, 0]], [[0, 1, 1]], 50.0)


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_weights_by_examples_reach_the_rule(name: str) -> None:
    assert SYNCHRONOUS[name](name=name, weight_by_examples=True).aggregation_rule.weight_by_examples
    assert not SYNCHRONOUS[name](name=name).aggregation_rule.weight_by_examples


def test_rules_of_the_methods() -> None:
    assert FedAvg().aggregation_rule == Contributors()
    assert DropStragglers().aggregation_rule == Contributors()
    assert DropStragglers(normalise="everyone").aggregation_rule == Everyone()
    assert Salf().aggregation_rule == Corrected()
    rule = InverseProbability(min_contributors=3, normalise="steps")
    assert Salf(rule=rule).aggregation_rule == rule
    assert Salf(rule=rule, weight_by_examples=True).aggregation_rule == replace(rule, weight_by_examples=True)
    assert Salf(rule=replace(rule, weight_by_examples=True)).aggregation_rule.weight_by_examples


def reach(method: SynchronousMethod, devices: Devices, deadline: float | None = 1.0) -> Floats | None:
    observed = ObservedReach(4).observe([0, 1, 2], [[False, False, True, True]] * 3)
    return method.reach(RoundContext(devices, workload(4), everyone(3), deadline, observed))


def test_chances_are_observed_or_known() -> None:
    devices = UniformDepthDevices(stragglers=1.0)
    observed = reach(Salf(), devices)
    assert observed is not None
    # Never seen in one round: (0 + 2 · 1/4) / (1 + 2), as overall it is (0 + 1) / (3 + 1).
    assert observed == pytest.approx(np.tile([1 / 6, 1 / 6, 1.0, 1.0], (3, 1)))
    known = reach(Salf(reach_from="known"), devices)
    assert known == pytest.approx(np.tile([0.25, 0.5, 0.75, 1.0], (3, 1)))
    exponential = reach(Salf(reach_from="known"), ExponentialLayers(), deadline=2.0)
    assert exponential is not None
    assert exponential[:, -1] == pytest.approx(1 - np.exp(-2.0))
    certain = reach(Salf(reach_from="known"), Physical(), deadline=None)
    assert certain is not None
    assert certain.tolist() == np.ones((3, 4)).tolist()
    for method in (FedAvg(), DropStragglers()):
        assert reach(method, devices) is None


def test_chances_without_a_closed_form_are_refused_with_a_remedy() -> None:
    with pytest.raises(InvalidSetting, match=r"reach_from is 'known'.*no closed form.*; set method.reach_from to"):
        reach(Salf(reach_from="known"), Physical(availability="on-off"))


def test_chances_are_observed_over_the_rounds_of_a_run() -> None:
    settings = {"devices.stragglers": 1.0, "devices.drawn": "persistent", "data.clients": 5}
    simulation = Simulation(small_experiment(settings), dataset=small_data())
    state = simulation.initial_state()
    for _ in range(30):
        state, _ = simulation.play(state)
    truth = simulation.experiment.devices.reach(simulation.workload, everyone(5, seed=5), 1.0)
    assert truth is not None
    assert abs(state.observed.probability(np.arange(5)) - truth).max() < 0.08


@pytest.mark.parametrize(
    "wrong",
    [
        {"method.deadline": 0},
        {"method.deadline": -1.0},
        {"method.deadline": float("nan")},
        {"method.rule": "nonsense"},
        {"method.reach_from": "nowhere"},
        {"devices.stragglers": 1.5},
        {"devices.lowest_depth": -1},
        {"devices.seconds": 0.0},
        {"devices.kind": "physical", "devices.bandwidth_ratio": 0.5},
        {"devices.kind": "physical", "devices.slowdown": 0.9},
        {"devices.kind": "exponential", "devices.mean_layer_seconds": float("inf")},
        {"client.lr": 0.0},
        {"client.cohort": 7},
    ],
    ids=str,
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match="the test: "):
        small_experiment(wrong)
