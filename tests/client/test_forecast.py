import gc
import math
import weakref
from itertools import cycle, islice

import pytest
import torch
from hypothesis import given, strategies as st
from networks import mlp_task
from virtual_time import Clock

from salf.client.forecast import Estimate, EstimateBySize, Reserve, TimeForecast, forecast_of
from salf.client.time_budget import Stopwatch


def estimate(*seconds: float) -> Estimate:
    made = Estimate()
    for value in seconds:
        made.add(value)
    return made


def test_an_estimate_without_measurements_foresees_nothing() -> None:
    fresh = Estimate()
    fresh.ease()
    assert fresh.upper == 0


def test_equal_measurements_are_foreseen_exactly() -> None:
    assert estimate(2.5).upper == estimate(2.5, 2.5, 2.5).upper == 2.5


def test_an_estimate_is_seldom_exceeded() -> None:
    generator = torch.Generator().manual_seed(0)
    values = (1 + 0.1 * torch.randn(2000, generator=generator)).tolist()
    made, exceeded = estimate(*values[:16]), 0
    for value in values[16:]:
        exceeded += value > made.upper
        made.add(value)
    assert exceeded < 0.06 * len(values)


def test_a_hiccup_does_not_move_an_estimate_and_a_change_does() -> None:
    assert estimate(*[1.0] * 8, 50.0).upper == 1
    assert estimate(*[1.0] * 16, *[4.0] * 16).upper == 4


def test_easing_lowers_an_estimate_the_less_the_more_is_known() -> None:
    one, many = estimate(1.0), estimate(*[1.0] * 16)
    one.ease()
    many.ease()
    assert 0.9 < one.upper < many.upper < 1
    one.add(1.0)
    assert one.upper == 1


def test_a_measurement_that_confirms_easing_outweighs_the_longer_ones_before_it() -> None:
    confirmed, refuted = estimate(*[4.0] * 16), estimate(*[4.0] * 16)
    for made in (confirmed, refuted):
        while made.upper > 2.5:
            made.ease()
    confirmed.add(2.0)
    refuted.add(3.0)
    assert confirmed.upper == 2
    assert refuted.upper == 4


def test_easing_that_was_wrong_is_taken_back_and_goes_on_more_slowly() -> None:
    denied, again = Estimate(), Estimate()
    for estimate in (denied, again):
        estimate.add(4.0)
        estimate.ease()
    assert denied.upper < 4
    denied.refute(2.0)
    again.add(4.0)
    assert denied.upper == denied.lower == again.upper == again.lower == 4
    denied.ease()
    again.ease()
    assert again.upper < denied.upper < 4


def test_a_stall_does_not_outweigh_what_was_measured() -> None:
    estimate = Estimate()
    for _ in range(5):
        estimate.add(4.0)
    estimate.refute(50.0)
    assert estimate.lower == estimate.upper == 4


def test_the_lower_forecast_is_the_best_that_was_measured() -> None:
    forecast = TimeForecast()
    for seconds in (3.0, 1.0, 2.0):
        forecast.layers["head"].add(seconds)
        forecast.step.add(10, 10 * seconds)
        forecast.copy.add(10, 100 * seconds)
        forecast.leave.add(1000 * seconds)
    assert forecast.lower("head", 10, 10) == 1111
    assert forecast.lower("stem", 0, 0) == 1000
    assert forecast.upper("head", 10, 10) == 5 * 1111
    forecast.refute("stem", 9.0)
    forecast.refute("head", 9.0)
    # What was not enough counts as one measurement of twice the time; the best that was measured remains.
    assert forecast.lower("head", 0, 0) == 1001


def test_sizes_are_foreseen_from_the_nearest_larger_one() -> None:
    sizes = EstimateBySize()
    sizes.ease(10)
    assert sizes.upper(10) == 0
    sizes.add(100, 8.0)
    sizes.add(10, 2.0)
    assert [sizes.upper(size) for size in (0, 5, 10, 11, 100, 150)] == [0, 2, 2, 8, 8, 12]
    sizes.ease(0)
    sizes.ease(11)
    assert sizes.upper(10) == 2
    assert sizes.upper(100) < 8


def test_the_next_layer_follows_from_the_longest_order_seen() -> None:
    forecast = TimeForecast()
    assert forecast.next_layer(None) is None
    assert forecast.next_layer("head") is None
    forecast.learn_order(["head", "body", "body", "stem"])
    forecast.learn_order(["head"])
    assert [forecast.next_layer(layer) for layer in (None, "head", "body", "stem", "other")] == [
        "head",
        "body",
        "stem",
        None,
        None,
    ]


def test_a_whole_pass_is_foreseen_only_when_every_layer_was_timed() -> None:
    forecast = TimeForecast()
    assert forecast.whole_pass_seconds() == 0
    forecast.learn_order(["head", "stem"])
    forecast.layers["head"].add(2.0)
    assert forecast.whole_pass_seconds() == 0
    forecast.layers["stem"].add(3.0)
    assert forecast.whole_pass_seconds() == 5


def test_foreseeing_adds_up_and_easing_eases_each_part() -> None:
    forecast = TimeForecast()
    assert forecast.upper("head", 10, 10) == 0
    forecast.layers["head"].add(1.0)
    forecast.step.add(10, 2.0)
    forecast.copy.add(10, 4.0)
    forecast.leave.add(8.0)
    assert forecast.upper("head", 10, 10) == 15
    assert forecast.upper("stem", 10, 0) == 10
    assert forecast.upper(None, 0, 0) == 8
    forecast.ease("head", 10, 10)
    assert forecast.upper("head", 10, 10) == pytest.approx(15 * 0.95)


def test_a_late_block_adds_to_the_reserve_and_24_in_time_take_it_back() -> None:
    reserve = Reserve(rate=0.02)
    reserve.update(missed=False, block_seconds=10)
    assert reserve.seconds == 0
    reserve.update(missed=True, block_seconds=10)
    assert reserve.seconds == pytest.approx(0.192)
    for _ in range(23):
        reserve.update(missed=False, block_seconds=10)
    assert reserve.seconds == pytest.approx(0.008)
    reserve.update(missed=False, block_seconds=10)
    assert reserve.seconds == pytest.approx(0, abs=1e-12)


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=20), st.floats(0.01, 10))
def test_however_forecasts_err_few_blocks_are_late(errors: list[float], seconds: float) -> None:
    reserve, late = Reserve(rate=0.02), 0
    for error in islice(cycle(errors), 500):  # of the block's time; a reserve of that size would have been enough
        is_late = error * seconds > reserve.within(seconds)
        late += is_late
        reserve.update(missed=is_late, block_seconds=seconds)
    # Every late block adds 24 times what one in time takes away, and none is late once the reserve exceeds every error.
    assert late <= (0.2 + 0.02) / 0.02 + 0.04 * 500


def test_what_long_blocks_have_taught_does_not_starve_short_ones() -> None:
    reserve = Reserve(rate=0.02)
    for _ in range(10):
        reserve.update(missed=True, block_seconds=1000)
    assert reserve.within(1000) == pytest.approx(192)
    assert reserve.within(1) == pytest.approx(0.2)


def test_after_many_late_blocks_the_reserve_is_soon_given_back() -> None:
    reserve = Reserve(rate=0.02)
    for _ in range(500):
        reserve.update(missed=True, block_seconds=10)
    assert reserve.seconds == pytest.approx(2.2)
    for _ in range(275):
        reserve.update(missed=False, block_seconds=10)
    assert reserve.within(10) == pytest.approx(0, abs=1e-9)


def test_a_forecast_is_kept_for_a_model_and_a_clock_and_is_freed_with_the_model() -> None:
    model, other, clock = mlp_task().model, mlp_task().model, Clock()
    forecast = forecast_of(model, clock)
    assert forecast_of(model, clock) is forecast
    assert forecast_of(other, clock) is not forecast
    assert forecast_of(model, Clock()) is not forecast
    gone, forecast_gone = weakref.ref(model), weakref.ref(forecast_of(model, clock))
    del model
    gc.collect()
    assert gone() is None
    assert forecast_gone() is None


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "xpu"])
def test_a_stopwatch_waits_for_its_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, device = Clock(), torch.device(name)
    waited_for: list[torch.device] = []

    def synchronize(device: torch.device) -> None:
        waited_for.append(device)
        clock.advance(3)

    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    watch = Stopwatch(clock, 10, device)
    watch.start()
    assert (watch.started, watch.limit, watch.is_cheap) == (3, 13, False)
    assert watch.now() == 6
    assert waited_for == [device, device]


def test_a_stopwatch_on_the_cpu_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.accelerator, "synchronize")
    watch = Stopwatch(Clock(), 10, torch.device("cpu"))
    assert (watch.started, watch.limit) == (0, math.inf)
    watch.start()
    assert (watch.started, watch.limit, watch.now(), watch.is_cheap) == (0, 10, 0, True)
