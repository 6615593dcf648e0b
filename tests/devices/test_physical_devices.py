"""The physical device model: compute, links and availability are spread as they are said to be."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from simulator_cases import everyone, workload

from salf.devices import Cohort, CompletionTimes, Devices, ExponentialLayers, Physical, UniformDepthDevices
from salf.values import Floats

MANY = 20_000
Z90 = 1.2815515655446004
ENDLESS = 1e18  # a bandwidth at which sending takes no time
STILL: dict[str, Any] = {"jitter": 0.0, "bandwidth_bits_per_second": ENDLESS, "bandwidth_ratio": 1.0}


def spread(values: Floats) -> float:
    low, high = np.quantile(values, [0.1, 0.9])
    return float(high / low)


def test_a_step_is_divided_by_operations_forward_pass_included() -> None:
    devices = Physical(step_seconds=2.8, speed_sigma=0.0, **STILL)
    times = devices.times(workload(4, 2), everyone(1))
    # Forward 7 operations, backward 2, 3, 4, 5 (input to output): 21 in all, completed from the output.
    done = np.array([7 + 5 + 4 + 3 + 2, 7 + 5 + 4 + 3, 7 + 5 + 4, 7 + 5]) / 21
    assert times.ready[0] == pytest.approx(2.8 * np.stack([done, 1 + done]), rel=1e-9)
    assert times.whole == pytest.approx([5.6])
    assert devices.typical_seconds(workload(4, 2)) == pytest.approx(5.6)


@pytest.mark.parametrize(("sigma", "ratio"), [(0.8, 7.77), (1.0, 12.98)])
def test_speeds_are_log_normal(sigma: float, ratio: float) -> None:
    whole = Physical(speed_sigma=sigma, **STILL).times(workload(), everyone(MANY)).whole
    assert spread(whole) == pytest.approx(ratio, rel=0.05)
    logs = np.log(whole / 0.588)
    assert abs(logs.mean()) < 0.03
    assert logs.std() == pytest.approx(sigma, rel=0.02)
    assert abs(((logs - logs.mean()) ** 3).mean() / logs.std() ** 3) < 0.06


def test_speeds_stay_with_the_client_unless_drawn_in_each_round() -> None:
    lasting, fresh = Physical(**STILL), Physical(drawn="round", **STILL)
    first, second = (lasting.times(workload(), everyone(MANY, turn)).whole for turn in (1, 2))
    assert (first == second).all()
    first, second = (fresh.times(workload(), everyone(MANY, turn)).whole for turn in (1, 2))
    assert abs(np.corrcoef(np.log(first), np.log(second))[0, 1]) < 0.03
    assert spread(second) == pytest.approx(np.exp(2 * Z90 * 0.8), rel=0.05)


def test_a_clients_own_rounds_jitter() -> None:
    devices = Physical(speed_sigma=0.0, bandwidth_bits_per_second=ENDLESS)
    first, second = (devices.times(workload(), everyone(MANY, turn)).whole / 0.588 for turn in (1, 2))
    assert first.mean() == pytest.approx(1.0, abs=0.005)
    assert first.std() / first.mean() == pytest.approx(0.1, rel=0.03)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


@pytest.mark.parametrize("ratio", [1.0, 1.3, 1.9, 10.9])
def test_links_are_log_normal_around_the_stated_bandwidth(ratio: float) -> None:
    asked = workload()
    devices = Physical(step_seconds=1e-15, jitter=0.0, bandwidth_bits_per_second=8e3, bandwidth_ratio=ratio)
    times = devices.times(asked, everyone(MANY))
    download = times.ready[:, 0, 0]
    assert spread(download) == pytest.approx(ratio, rel=0.05)
    assert np.median(download) == pytest.approx(sum(asked.costs.layer_bytes) / 1e3, rel=0.02)
    assert times.whole == pytest.approx(2 * download)  # up as fast as down
    assert (devices.times(asked, everyone(MANY, round=2)).whole == times.whole).all()


def test_uploading_takes_longer_the_more_is_conveyed() -> None:
    devices = Physical(speed_sigma=0.0, jitter=0.0, bandwidth_bits_per_second=8e3, bandwidth_ratio=1.0)
    times = devices.times(workload(4, 2), everyone(3))
    sending = times.sent - times.ready
    assert sending[:, 0] == pytest.approx(np.tile([1.0, 0.9, 0.7, 0.4], (3, 1)))
    assert sending[:, 1] == pytest.approx(1.0)  # after a whole step every layer is conveyed


def any_devices() -> st.SearchStrategy[Devices]:
    physical = st.builds(
        Physical,
        speed_sigma=st.floats(0, 2),
        jitter=st.floats(0, 1),
        bandwidth_bits_per_second=st.floats(1e3, 1e9),
        bandwidth_ratio=st.floats(1, 11),
        stragglers=st.floats(0, 1),
        drawn=st.sampled_from(["once", "round"]),
        availability=st.sampled_from(["always", "on-off"]),
        on_seconds=st.floats(1e-3, 1e3),
        off_seconds=st.floats(1e-3, 1e3),
    )
    uniform = st.builds(
        UniformDepthDevices,
        stragglers=st.floats(0, 1),
        drawn=st.sampled_from(["once", "round", "persistent"]),
        lowest_depth=st.integers(0, 5),
        seconds=st.floats(1e-3, 1e3),
    )
    return st.one_of(physical, uniform, st.builds(ExponentialLayers, mean_layer_seconds=st.floats(1e-3, 1e3)))


@settings(max_examples=100, deadline=None)
@given(devices=any_devices(), layers=st.integers(1, 5), steps=st.integers(1, 3), round=st.integers(1, 99))
def test_times_go_from_output_to_input_and_step_by_step(devices: Devices, layers: int, steps: int, round: int) -> None:
    asked = workload(layers, steps)
    times = devices.times(asked, everyone(30, round))
    assert times.ready.shape == times.sent.shape == (30, steps, layers)
    assert times.whole.shape == (30,)
    for each in (times.ready, times.sent):
        in_order = each[:, :, ::-1].reshape(30, -1)
        assert (in_order > 0).all()
        assert all((before <= after).all() for before, after in pairwise(in_order.T))
    assert (times.sent >= times.ready).all()
    assert (times.whole >= times.sent.max(axis=(1, 2))).all()
    assert_counts_grow(times, devices.typical_seconds(asked))
    alone = devices.times(asked, Cohort(np.array([7]), 30, round, 0))
    assert (alone.sent == times.sent[7]).all()


def assert_counts_grow(times: CompletionTimes, typical: float) -> None:
    earlier = np.zeros_like(times.steps_by(0.0))
    assert (times.steps_by(0.0) == 0).all()
    for deadline in typical * np.array([0.01, 0.3, 1.0, 1.5, 4.0, 100.0]):
        steps, ready = times.steps_by(deadline), times.steps_ready_by(deadline)
        assert (steps >= earlier).all()
        assert (ready >= steps).all()
        assert (np.diff(steps, axis=1) >= 0).all()
        assert (steps[:, -1] - steps[:, 0] <= 1).all()
        earlier = steps


def test_the_typical_time_is_the_median_clients() -> None:
    devices = Physical(bandwidth_bits_per_second=2e4, bandwidth_ratio=1.9)
    asked = workload(4, 3)
    whole = devices.times(asked, everyone(MANY)).whole
    assert np.median(whole) == pytest.approx(devices.typical_seconds(asked), rel=0.05)


def test_stragglers_are_slower_by_their_factor() -> None:
    plain, slowed = (Physical(stragglers=share, slowdown=5.0, **STILL) for share in (0.0, 0.3))
    ratio = slowed.times(workload(), everyone(MANY)).whole / plain.times(workload(), everyone(MANY)).whole
    straggling = ratio > 2
    assert straggling.mean() == pytest.approx(0.3, abs=0.02)
    assert ratio[straggling] == pytest.approx(5.0)
    assert ratio[~straggling] == pytest.approx(1.0)
    later = (
        slowed.times(workload(), everyone(MANY, round=2)).whole / plain.times(workload(), everyone(MANY, round=2)).whole
    )
    assert ((later > 2) == straggling).all()


@pytest.mark.parametrize(("on", "off"), [(138.0, 476.0), (10.0, 10.0), (30.0, 3.0)])
def test_devices_are_on_at_the_start_as_often_as_they_are_on(on: float, off: float) -> None:
    settings: dict[str, Any] = {"step_seconds": 1e-9, "speed_sigma": 0.0, **STILL}
    devices = Physical(availability="on-off", on_seconds=on, off_seconds=off, **settings)
    wait = devices.times(workload(), everyone(MANY)).ready
    began_off = wait[:, 0, -1] > 1e-6
    assert 1 - began_off.mean() == pytest.approx(on / (on + off), abs=0.015)
    assert np.median(wait[began_off, 0, -1]) == pytest.approx(off, rel=0.06)


def test_availability_stretches_times_as_often_as_devices_go_off() -> None:
    on, off = 20.0, 50.0
    settings: dict[str, Any] = {"step_seconds": 90.0, "speed_sigma": 0.0, **STILL}
    always = Physical(**settings).times(workload(), everyone(MANY))
    switched = Physical(availability="on-off", on_seconds=on, off_seconds=off, **settings).times(
        workload(), everyone(MANY)
    )
    assert (switched.ready >= always.ready).all()
    assert (switched.sent >= always.sent).all()
    # Spells are exponential: off to begin with in off/(on+off) of the cases, then once per mean spell of being on.
    mean_on, mean_off = on / np.log(2), off / np.log(2)
    expected = mean_off * (off / (on + off) + always.whole[0] / mean_on)
    assert (switched.whole - always.whole).mean() == pytest.approx(expected, rel=0.03)
    later = Physical(availability="on-off", on_seconds=on, off_seconds=off, **settings).times(
        workload(), everyone(MANY, round=2)
    )
    assert abs(np.corrcoef(later.whole, switched.whole)[0, 1]) < 0.03


def test_a_device_that_is_always_on_in_effect_takes_no_longer() -> None:
    always = Physical().times(workload(), everyone(50))
    hardly_off = Physical(availability="on-off", on_seconds=1e12, off_seconds=1e-9).times(workload(), everyone(50))
    assert hardly_off.whole == pytest.approx(always.whole)
