"""Devices that are permanently slow, and what the methods against them do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from simulator_cases import everyone, play, same_weights, small_data, small_experiment, workload

from salf.aggregation.rules import Memory
from salf.devices import Devices, ExponentialLayers, GradedSpeeds, Physical, UniformDepthDevices
from salf.errors import InvalidSetting
from salf.methods import AdelFL, Remembering, RunContext, Salf, SalfPlus
from salf.participation.observed import ObservedReach, ObservedSpeeds
from salf.runs.checkpoint import load_checkpoint, save_checkpoint
from salf.simulation.simulator import Simulation

GRADED = {"devices.kind": "graded", "data.partition": "label-order", "data.clients": 8}


@pytest.mark.parametrize(("layers", "population"), [(4, 30), (4, 8), (7, 11), (1, 3)])
def test_graded_clients_complete_layers_in_proportion_to_their_number(layers: int, population: int) -> None:
    times = GradedSpeeds(seconds=2.0).times(workload(layers), everyone(population))
    depths = (times.sent[:, 0] <= 2.0).sum(axis=1)
    exact = layers * np.arange(population) / (population - 1)
    assert depths.tolist() == np.floor(exact + 0.5).astype(int).tolist()
    assert np.isinf(times.whole[0])
    assert times.give_up_seconds > times.whole[1:].max()


def test_a_single_graded_client_is_fast_enough() -> None:
    assert GradedSpeeds(seconds=2.0).times(workload(4), everyone(1)).whole[0] <= 2.0


@pytest.mark.parametrize(
    "devices",
    [GradedSpeeds(), UniformDepthDevices(), ExponentialLayers(), Physical(bandwidth_bits_per_second=1e15, jitter=0.0)],
)
def test_a_smaller_batch_takes_its_share_of_the_time(devices: Devices) -> None:
    cohort = everyone(12)
    batch_fraction = np.linspace(0.1, 1.0, 12)
    whole, part = (
        devices.times(workload(4, 2), one).ready for one in (cohort, replace(cohort, batch_fraction=batch_fraction))
    )
    finite = np.isfinite(whole)
    assert (np.isfinite(part) == finite).all()
    expected = whole * batch_fraction[:, None, None]
    assert part[finite] == pytest.approx(expected[finite], rel=1e-6)


def test_batches_are_as_large_as_the_effort() -> None:
    simulation = Simulation(small_experiment({"client.batch_size": 10}), dataset=small_data())
    shares = np.array([1.0, 0.5, 0.26, 0.04, 0.001, 0.8])
    cohort = replace(everyone(6), batch_fraction=simulation.sampler.to_whole_examples(np.arange(6), shares))
    batches = simulation.sampler.tasks(cohort, np.ones((6, len(simulation.layers)), dtype=np.int64)).batches
    assert (batches[:, 0] >= 0).sum(axis=1).tolist() == [10, 5, 3, 1, 1, 8]
    whole = simulation.sampler.tasks(everyone(6), np.ones((6, len(simulation.layers)), dtype=np.int64)).batches
    assert batches[1, 0, :5].tolist() == whole[1, 0, :5].tolist()


UNSEEN = ObservedReach(num_layers=4)
Rounds = st.lists(st.dictionaries(st.integers(0, 9), st.floats(0, 100), min_size=1), min_size=1, max_size=30)


@given(Rounds)
def test_speeds_are_means_in_which_the_past_fades(rounds: list[dict[int, float]]) -> None:
    seen, naive, counts = ObservedSpeeds(), dict[int, float](), dict[int, int]()
    for one in rounds:
        seen = seen.observe(list(one), list(one.values()))
        for client, speed in one.items():
            counts[client] = counts.get(client, 0) + 1
            share = max(1 / counts[client], 0.1)
            naive[client] = (1 - share) * naive.get(client, 0.0) + share * speed
    assert seen.of([*naive]) == pytest.approx([*naive.values()], abs=1e-9)
    assert np.isnan(seen.of([77])).all()
    again = ObservedSpeeds.from_arrays(seen.to_arrays())
    assert again == seen


def test_every_so_many_rounds_last_longer() -> None:
    method = Remembering(deadline=2.0, long_every=4, long_factor=3.0)
    assert [method.in_round(number, 9.0, UNSEEN).deadline for number in range(1, 9)] == [2.0, 2.0, 2.0, 6.0] * 2
    assert replace(method, deadline=None).in_round(4, 9.0, UNSEEN).deadline == 27.0
    assert replace(method, long_every=None).in_round(4, 9.0, UNSEEN).deadline == 2.0


def test_some_rounds_last_longer_while_somebody_is_left_behind() -> None:
    alike = behind = UNSEEN
    draws = np.random.default_rng(0)
    for _ in range(20):
        alike = alike.observe(range(10), draws.random((10, 1)) < [0.4, 0.6, 0.8, 1.0])
        behind = behind.observe(range(10), [[False] * 4, *[[True] * 4] * 9])
    method = SalfPlus(deadline=2.0, long_every=4, long_factor=3.0)
    assert [method.in_round(number, 9.0, behind).deadline for number in range(1, 9)] == [2.0, 2.0, 2.0, 6.0] * 2
    assert {method.in_round(number, 9.0, alike).deadline for number in range(1, 9)} == {2.0}
    assert {method.in_round(number, 9.0, UNSEEN).deadline for number in range(1, 9)} == {2.0}
    # Ten rounds with one of five deadlines: on average 1.4 deadlines at most.
    usual = [SalfPlus().in_round(number, 1.0, behind).deadline or 1.0 for number in range(1, 101)]
    assert np.mean(usual) == pytest.approx(1.4)


@pytest.mark.parametrize("stragglers", [0.3, 0.9])
def test_no_round_is_longer_where_chance_alone_makes_stragglers(stragglers: float) -> None:
    settings = {"data.clients": 20, "devices.stragglers": stragglers, "rounds": 120, "method.name": "salfplus"}
    _, records = play(settings)
    assert {record.deadline_s for record in records} == {1.0}


def test_slow_clients_get_as_much_as_they_finish() -> None:
    batch_fraction = SalfPlus(deadline=2.0).batch_fraction(np.array([np.nan, 0.25, 0.5, 3.0, 0.0]), usual_seconds=9.0)
    assert batch_fraction == pytest.approx([1.0, 0.5, 1.0, 1.0, 0.0])
    assert Salf().batch_fraction(np.ones(3), 1.0) is None


def test_after_a_round_everyone_who_can_reaches_every_layer() -> None:
    settings = {**GRADED, "method.name": "salfplus", "method.long_every": None, "client.batch_size": 12, "rounds": 6}
    state, records = play(settings)
    # Speeds 0, 1/7, … 1: at first rounded depths, then all but client 0.
    assert records[0].contributors[0] < 7
    assert all(record.contributors == (7,) * len(record.contributors) for record in records[2:])
    assert state.speeds.of(np.arange(1, 8)) == pytest.approx(np.arange(1, 8) / 7, rel=0.2)


def test_what_is_known_of_speeds_survives_a_checkpoint(tmp_path: Path) -> None:
    state, _ = play({**GRADED, "method.name": "salfplus"})
    save_checkpoint(tmp_path / "state", state)
    assert load_checkpoint(tmp_path / "state")[0].speeds == state.speeds
    assert len(state.speeds.known) == 8


def test_without_stragglers_nothing_is_different() -> None:
    """Everyone in time: no smaller batches, and long rounds that end as soon as all are done."""
    settings = {"devices.stragglers": 0.0, "rounds": 12, "engine": "plain"}
    plus, records = play({**settings, "method.name": "salfplus"})
    plain, _ = play(settings)
    assert same_weights(plus.weights, plain.weights)
    assert records[-1].time_s == pytest.approx(12.0)


def test_memory_is_a_rule_with_long_rounds() -> None:
    assert Remembering().aggregation_rule == Memory()
    assert Remembering(weight_by_examples=True).aggregation_rule.weight_by_examples
    _, records = play({**GRADED, "method.name": "memory", "rounds": 5})
    assert records[0].contributors[0] < records[4].contributors[0] == 7
    assert records[4].deadline_s == 30.0


def run_context(speeds: list[float], rounds: int = 50) -> RunContext:
    return RunContext(rounds, workload(4), usual_seconds=2.0, batch_size=16, step_size=0.1, speeds=np.array(speeds))


def test_adaptive_deadlines_spend_the_time_of_constant_ones() -> None:
    method = AdelFL().prepare(run_context([0.5] * 10))
    assert len(method.deadlines) == 50
    assert sum(method.deadlines) == pytest.approx(100.0)
    assert method.deadlines[0] < method.deadlines[-1]  # what happened long ago hardly counts
    assert sum(AdelFL(total_seconds=150.0).prepare(run_context([0.5] * 10)).deadlines) == pytest.approx(150.0)
    assert method.in_round(3, 2.0, UNSEEN).deadline == method.deadlines[2]
    assert method.in_round(99, 2.0, UNSEEN).deadline == method.deadlines[-1]
    assert method.prepare(run_context([0.1] * 3)) == method


def test_explicit_deadlines_are_kept() -> None:
    method = AdelFL(deadlines=(1.0, 3.0)).prepare(run_context([0.5] * 4))
    assert [method.in_round(number, 2.0, UNSEEN).deadline for number in (1, 2, 3)] == [1.0, 3.0, 3.0]
    _, records = play({"method.name": "adel", "method.deadlines": [0.5, 0.75, 1.0], "devices.stragglers": 1.0})
    assert [record.deadline_s for record in records] == [0.5, 0.75, 1.0]


def test_clients_that_never_answer_do_not_stop_the_schedule() -> None:
    assert sum(AdelFL().prepare(run_context([0.0, 0.0, 0.1, 0.5])).deadlines) == pytest.approx(100.0)


def test_constants_and_budgets_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"strong_convexity is 2\.0, more than method\.smoothness = 1\.0"):
        small_experiment({"method.name": "adel", "method.strong_convexity": 2.0})
    with pytest.raises(InvalidSetting, match=r"method\.deadlines"):
        small_experiment({"method.name": "adel", "method.deadlines": [1.0, 0.0]})
