"""Outlooks, recommendations and schedules."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning_cases import fleet_of, task_of
from simulator_cases import everyone, workload

from salf import theory
from salf.devices import ExponentialLayers, Physical, UniformDepthDevices
from salf.errors import InvalidSetting
from salf.planning import STEPS, DeadlinePlan, Fleet, MeasuredTimes, make_plan, outlook_at, read_times
from salf.planning.fleet import round_up

NAMES = ("in", "one", "two", "out")


def plan_of(fleet: Fleet, seconds: float = 100.0, **changes: Any) -> DeadlinePlan:
    own = fleet.devices.typical_seconds(fleet.workload)
    return make_plan(fleet, task_of(fleet, seconds, **changes), own)


@pytest.mark.parametrize("drawn", ["once", "round"])
@pytest.mark.parametrize("steps", [1, 3])
def test_physical_devices_know_their_chances(drawn: Any, steps: int) -> None:
    devices = Physical(
        drawn=drawn, stragglers=0.3, jitter=0.3, bandwidth_bits_per_second=2e4, bandwidth_ratio=5.0, step_seconds=0.5
    )
    asked, seconds, rounds = workload(4, steps), 0.9, 1500
    known = devices.reach(asked, everyone(20), seconds)
    assert known is not None
    drawn_times = [devices.times(asked, everyone(20, turn)).steps_by(seconds) > 0 for turn in range(1, rounds + 1)]
    frequency = np.mean(drawn_times, axis=0)
    if drawn == "round":
        known, frequency, rounds = known.mean(axis=0), frequency.mean(axis=0), rounds * 20
    error = np.sqrt(known * (1 - known) / rounds)
    assert (np.abs(frequency - known) <= 4 * error + 1e-9).all()  # at most 80 comparisons


def test_bounds_and_estimates_are_those_of_the_theory() -> None:
    fleet = fleet_of(ExponentialLayers(mean_layer_seconds=0.5))
    for steps, scale in (("adel", 1.0), ("decaying", 2.0)):
        task = task_of(fleet, 80.0, steps)
        outlook = outlook_at(fleet, task, 2.0)
        reach = theory.reach_probability(depth=theory.ExponentialDepth(0.5, 2.0), num_layers=4)
        empty = theory.empty_probability(reach=reach, num_clients=12)
        np.testing.assert_allclose(outlook.empty, empty, atol=1e-12)
        assert outlook.rounds == int(80.0 / outlook.round_seconds)
        sizes = theory.decaying_steps(constants=task.constants, rounds=outlook.rounds, scale=scale)
        bound = theory.bound(
            constants=task.constants, initial_error=1.0, rounds=outlook.rounds, empty=empty, step_sizes=sizes
        )
        assert outlook.bound == pytest.approx(bound[-1])
        assert outlook.estimate < outlook.bound  # devices alike: no bias, and the exact variance is smaller
        exact = theory.round_seconds(depth=theory.ExponentialDepth(0.5, 2.0), num_layers=4, num_clients=12)
        assert outlook.round_seconds == pytest.approx(exact, rel=0.01)
        kept = theory.kept_by_dropping(reach=reach, costs=fleet.workload.costs.backward)
        assert outlook.kept_by_dropping == pytest.approx(kept, rel=0.05)


# Shared by tests, because a fleet draws its rounds once.
EXPONENTIAL = fleet_of(ExponentialLayers(), clients=4)
LASTING, FRESH = fleet_of(Physical(drawn="once"), clients=8), fleet_of(Physical(drawn="round"), clients=8)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("fleet", [EXPONENTIAL, fleet_of(UniformDepthDevices(), clients=8), LASTING, FRESH])
def test_the_best_is_best_and_a_schedule_is_no_worse_within_the_time(fleet: Fleet, steps: str) -> None:
    made = plan_of(fleet, 60.0, steps=steps)
    assert made.best.estimate == min(outlook.estimate for outlook in made.outlooks)
    assert made.adaptive.estimate <= made.best.estimate
    lengths = {outlook.deadline_seconds: outlook.round_seconds for outlook in made.outlooks}
    spent = sum(lengths[deadline] for deadline in made.adaptive.deadlines_seconds.tolist())
    assert spent <= 60.0 * (1 + 1e-6)
    assert made.best.rounds * made.best.round_seconds <= 60.0 * (1 + 1e-6)


def test_a_constant_step_makes_late_rounds_longer_and_falling_ones_early_rounds() -> None:
    constant = plan_of(EXPONENTIAL, 300.0, steps="constant", heterogeneity=0.0).adaptive.deadlines_seconds
    falling = plan_of(EXPONENTIAL, 300.0, steps="adel", heterogeneity=0.0).adaptive.deadlines_seconds
    thirds = [[part.mean() for part in np.array_split(each, 3)] for each in (constant, falling)]
    assert thirds[0][2] > thirds[0][0]
    assert thirds[1][2] < thirds[1][0]


def test_permanently_slow_devices_need_longer_deadlines() -> None:
    lasting, fresh = plan_of(LASTING), plan_of(FRESH)
    assert fresh.best.imbalance.max() < 1e-9
    assert lasting.best.mean_depth > fresh.best.mean_depth
    early = outlook_at(LASTING, lasting.task, 0.2)
    assert early.imbalance[0] > 1
    assert early.out_of_reach[0] > 0.5
    assert early.estimate > lasting.best.estimate


def test_very_many_rounds_are_planned_too() -> None:
    fleet = fleet_of(ExponentialLayers(mean_layer_seconds=1e-3))
    made = make_plan(fleet, task_of(fleet, 100.0, "constant"), 4e-3, [2e-3, 4e-3])
    assert made.best.rounds > 20_000
    assert made.adaptive.estimate <= made.best.estimate


def test_very_many_clients_are_represented_by_some() -> None:
    fleet = fleet_of(ExponentialLayers(), clients=50_000, asked=10)
    outlook = outlook_at(fleet, task_of(fleet), 3.0)
    reach = theory.reach_probability(depth=theory.ExponentialDepth(1.0, 3.0), num_layers=4)
    np.testing.assert_allclose(outlook.empty, theory.empty_probability(reach=reach, num_clients=10), atol=1e-9)
    assert fleet.rounds.cohorts.shape[1] == 10


def test_the_error_says_why_no_deadline_can_be_used() -> None:
    fleet = fleet_of(ExponentialLayers())
    with pytest.raises(InvalidSetting, match=r"the budget of 0.5 s is shorter than a round of .* s; raise the budget"):
        plan_of(fleet, 0.5)
    with pytest.raises(
        InvalidSetting, match="leaves some layer without a contributor in most rounds; try longer deadlines"
    ):
        make_plan(fleet, task_of(fleet), 1.0, [0.1, 0.2])


def test_deadlines_are_rounded_up() -> None:
    generator = np.random.default_rng(0)
    values = np.exp(generator.normal(size=200) * 5)
    rounded = round_up(values)
    assert (rounded >= values * (1 - 1e-9)).all()
    assert (rounded <= values * 1.011).all()
    assert round_up(np.array([1.0, 2.5, 100.0])).tolist() == [1.0, 2.5, 100.0]


def write(folder: Path, *rows: list[object]) -> Path:
    path = folder / "times.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_whole_workloads_are_divided_by_operations(tmp_path: Path) -> None:
    path = write(tmp_path, ["client", "seconds"], ["a", 2.1], ["b", 4.2], ["a", "inf"])
    measured = read_times(path, NAMES, workload(4, 2))
    assert measured.num_clients == 2
    assert measured.client.tolist() == [0, 0, 1]
    # Forward 7 operations, backward 2, 3, 4, 5 (input to output): 21 a step.
    done = np.array([7 + 14, 7 + 12, 7 + 9, 7 + 5]) / 42
    np.testing.assert_allclose(measured.sent[0], 2.1 * np.stack([done, 0.5 + done]))
    assert np.isinf(measured.sent[1]).all()
    reach = measured.reach(workload(4, 2), everyone(2), 4.2 * done[1] + 1e-9)
    assert reach.tolist() == [[0.5] * 4, [0.0, 1.0, 1.0, 1.0]]


def test_times_of_layers_are_taken_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, ["client", "out", "two", "one", "in"], ["x", 1, 2, 3, 4], ["y", 2, 3, 9, "inf"])
    measured = read_times(path, NAMES, workload(4))
    assert measured.sent[:, 0].tolist() == [[4, 3, 2, 1], [math.inf, 9, 3, 2]]
    fleet = Fleet(measured, workload(4), 2, 2, seed=0)
    outlook = outlook_at(fleet, task_of(fleet), 3.0)
    assert outlook.mean_depth == 2.5
    assert outlook.empty.tolist() == [1, 0, 0, 0]
    assert outlook.round_seconds == 3.0


def test_measured_rounds_are_repeated_at_random() -> None:
    sent = np.array([[[2.0, 1.0]], [[4.0, 3.0]], [[8.0, 6.0]]])
    measured = MeasuredTimes(sent, np.array([0, 0, 1]))
    drawn = np.stack([measured.times(workload(2), everyone(2, turn)).whole for turn in range(400)])
    assert set(drawn[:, 0]) == {2.0, 4.0}
    assert (drawn[:, 0] == 2.0).mean() == pytest.approx(0.5, abs=0.1)
    assert set(drawn[:, 1]) == {8.0}
    assert measured.typical_seconds(workload(2)) == 3.0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["client", "seconds", "seconds"], ["a", 1, 2]], "has the column seconds twice"),
        ([["client", "seconds"], ["a", 1], [" ", 1]], "line 3: the client has no name"),
        ([["client", "time"], ["a", 1]], "has the columns client, time; write client,seconds or client,in,one"),
        ([["name", "seconds"], ["a", 1]], "has the columns name, seconds"),
        ([["client", "seconds"]], "holds no times"),
        ([["client", "seconds"], ["a", 1], ["b", "soon"]], "line 3: seconds is 'soon'; give seconds"),
        ([["client", "seconds"], ["a", 0]], "line 2: seconds is '0'"),
        ([["client", "seconds"], ["a"]], "line 2: seconds is ''"),
        ([["client", "seconds"], ["a", "inf"]], "has no finite time"),
        ([["client", "in", "one", "two", "out"], ["a", 1, 2, 3, 4]], "line 2: a layer arrives before one"),
    ],
)
def test_bad_files_are_one_clear_error(rows: list[list[object]], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=message):
        read_times(write(tmp_path, *rows), NAMES, workload(4))


def test_unreadable_files_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"cannot read the times in .*nowhere\.csv: No such file"):
        read_times(tmp_path / "nowhere.csv", NAMES, workload(4))
    (tmp_path / "binary.csv").write_bytes(b"client,seconds\n\xff\xfe,1\n")
    with pytest.raises(InvalidSetting, match="it is not CSV in UTF-8"):
        read_times(tmp_path / "binary.csv", NAMES, workload(4))
    path = write(tmp_path, ["client", *NAMES], ["a", 4, 3, 2, 1])
    with pytest.raises(InvalidSetting, match=r"client\.local_steps is 2; set client\.local_steps = 1"):
        read_times(path, NAMES, workload(4, 2))
