"""The device models that state a distribution of depths: they draw what they say, and know their own chances."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st
from scipy.special import gammaincc
from scipy.stats import chisquare
from simulator_cases import everyone, workload

from salf import theory
from salf.devices import Cohort, ExponentialLayers, UniformDepthDevices

MANY = 20_000  # clients or rounds, enough for a frequency to be right to about a hundredth


def depths(
    devices: UniformDepthDevices, cohort: Cohort, layers: int = 4, local_steps: int = 1
) -> npt.NDArray[np.int64]:
    """How many layers each client has finished at the devices' own time, in all of its steps."""
    done: npt.NDArray[np.int64] = (
        devices.times(workload(layers, local_steps), cohort).steps_by(devices.seconds).sum(axis=1)
    )
    return done


def correlations(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.corrcoef(rows))


@pytest.mark.parametrize(("share", "population"), [(0.9, 30), (0.3, 30), (0.5, 7), (0.0, 5), (1.0, 5), (0.25, 1000)])
def test_the_share_of_stragglers_is_exact_and_theirs_for_the_run(share: float, population: int) -> None:
    devices = UniformDepthDevices(stragglers=share)
    late = [devices.times(workload(), everyone(population, turn)).whole > 1 for turn in (1, 2, 9)]
    assert late[0].sum() == np.floor(share * population + 0.5)
    assert (late[0] == late[1]).all()
    assert (late[0] == late[2]).all()


def test_another_seed_has_other_stragglers() -> None:
    devices = UniformDepthDevices(stragglers=0.5)
    one, other = (devices.times(workload(), everyone(40, seed=seed)).whole > 1 for seed in (0, 1))
    assert (one != other).any()


@pytest.mark.parametrize("lowest", [0, 1, 3, 4, 9])
def test_a_stragglers_depth_is_uniform(lowest: int) -> None:
    devices = UniformDepthDevices(stragglers=1.0, lowest_depth=lowest)
    counts = np.bincount(depths(devices, everyone(MANY)), minlength=5)
    least = min(lowest, 4)
    assert not counts[:least].any()
    assert chisquare(counts[least:]).pvalue > 0.001 or least == 4


def test_depths_are_independent_between_rounds_and_clients() -> None:
    devices = UniformDepthDevices(stragglers=1.0, lowest_depth=0)
    rounds = np.stack([depths(devices, everyone(2000, turn)) for turn in range(1, 9)]).astype(float)
    assert abs(correlations(rounds)[~np.eye(8, dtype=bool)]).max() < 0.1
    assert abs(np.corrcoef(rounds[:, :-1].ravel(), rounds[:, 1:].ravel())[0, 1]) < 0.05
    assert abs(rounds.mean(axis=1) - 2).max() < 0.1


def test_persistent_stragglers_keep_their_depth() -> None:
    devices = UniformDepthDevices(stragglers=0.8, drawn="persistent")
    first = depths(devices, everyone(50, round=1))
    assert all((depths(devices, everyone(50, turn)) == first).all() for turn in range(2, 20))
    assert set(first.tolist()) == {1, 2, 3, 4}


def test_stragglers_drawn_in_each_round_change() -> None:
    devices = UniformDepthDevices(stragglers=0.3, drawn="round")
    late = np.stack([devices.times(workload(), everyone(500, turn)).whole > 1 for turn in range(1, 41)])
    assert abs(late.mean() - 0.3) < 0.01
    assert abs(late.mean(axis=0) - 0.3).max() < 0.35
    assert late.any(axis=0).all()
    assert not late.all(axis=0).any()


@pytest.mark.parametrize("drawn", ["once", "round", "persistent"])
def test_a_client_draws_alone(drawn: Any) -> None:
    devices = UniformDepthDevices(drawn=drawn, stragglers=0.7)
    times = devices.times(workload(local_steps=2), everyone(20, round=4))
    some = devices.times(workload(local_steps=2), Cohort(np.array([3, 11]), 20, 4, 0))
    assert (some.sent == times.sent[[3, 11]]).all()
    assert (some.whole == times.whole[[3, 11]]).all()


@pytest.mark.parametrize("seconds", [1.0, 0.1, 7.3])
@pytest.mark.parametrize("local_steps", [1, 3])
def test_times_are_those_that_the_algorithms_page_states(seconds: float, local_steps: int) -> None:
    layers = 4
    devices = UniformDepthDevices(stragglers=0.8, lowest_depth=0, seconds=seconds)
    cohort, asked = everyone(400), workload(layers, local_steps)
    times = devices.times(asked, cohort)
    straggling = devices._stragglers(cohort)
    depth = devices._depths(layers, cohort, straggling)
    assert (times.whole[~straggling] == seconds).all()
    assert (times.ready[~straggling, -1, 0] == seconds).all()
    assert (times.whole[straggling & (depth == layers)] == np.nextafter(seconds, np.inf)).all()
    for d in range(1, layers):
        whole = times.whole[straggling & (depth == d)]
        assert len(whole) > 0
        assert whole == pytest.approx(seconds * layers / d)
    never = times.ready[straggling & (depth == 0)]
    assert len(never) > 0
    assert np.isinf(never).all()
    assert times.give_up_seconds == pytest.approx(layers * seconds)
    assert times.whole[np.isfinite(times.whole)].max() <= times.give_up_seconds
    # Layers take equal shares: place k of L · steps is done after k shares.
    place = np.arange(local_steps)[:, None] * layers + layers - np.arange(layers)
    assert times.ready[~straggling][0] == pytest.approx(seconds * place / (layers * local_steps))
    assert (times.sent == times.ready).all()
    assert devices.typical_seconds(asked) == seconds


def test_a_straggler_of_full_depth_may_count_as_done() -> None:
    strict, lenient = (
        UniformDepthDevices(stragglers=1.0, lowest_depth=9, stragglers_miss=miss) for miss in (True, False)
    )
    assert (lenient.times(workload(), everyone(5)).whole == 1.0).all()
    assert (strict.times(workload(), everyone(5)).whole > 1.0).all()
    assert (strict.times(workload(), everyone(5)).steps_by(1.0) == 1).all()


@pytest.mark.parametrize("seconds", [0.1, 0.3, 1.0, 0.7])
@pytest.mark.parametrize("local_steps", [1, 2, 3])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_chances_of_persistent_stragglers_are_what_happens(
    seconds: float, local_steps: int, data: st.DataObject
) -> None:
    layers = data.draw(st.integers(1, 9))
    devices = UniformDepthDevices(
        stragglers=data.draw(st.floats(0, 1)),
        drawn="persistent",
        lowest_depth=data.draw(st.integers(0, 10)),
        seconds=seconds,
    )
    asked, cohort = workload(layers, local_steps), everyone(60, round=2)
    deadline = seconds * data.draw(st.one_of(st.just(1.0), st.floats(0.01, 12), st.fractions(1, 9).map(float)))
    reach = devices.reach(asked, cohort, deadline)
    assert reach is not None
    assert (reach == (devices.times(asked, cohort).steps_by(deadline) > 0)).all()


@pytest.mark.parametrize("drawn", ["once", "round"])
@pytest.mark.parametrize("lowest", [0, 1, 2])
@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize("deadline", [0.1, 0.03, 0.17, 0.25, 1.0])
def test_chances_are_the_frequencies(drawn: Any, lowest: int, local_steps: int, deadline: float) -> None:
    devices = UniformDepthDevices(stragglers=0.6, drawn=drawn, lowest_depth=lowest, seconds=0.1)
    asked, cohort = workload(5, local_steps), everyone(MANY)
    reached = devices.times(asked, cohort).steps_by(deadline) > 0
    reach = devices.reach(asked, cohort, deadline)
    assert reach is not None
    # 5 standard deviations of a frequency over the stragglers, or over all.
    tolerance = 5 * 0.5 / np.sqrt(0.4 * MANY)
    groups = [devices._stragglers(cohort), ~devices._stragglers(cohort)] if drawn == "once" else [np.full(MANY, True)]
    for group in groups:
        assert (reach[group] == reach[group][0]).all()
        assert abs(reached[group].mean(axis=0) - reach[group][0]).max() < tolerance
        exact = np.isin(reach[group][0], [0, 1])
        assert (reached[group][:, exact] == reach[group][0][exact]).all()


def test_chances_are_those_of_the_theory() -> None:
    devices = UniformDepthDevices(stragglers=1.0, seconds=0.3)
    reach = devices.reach(workload(6), everyone(5), 0.3)
    assert reach is not None
    assert reach[0] == pytest.approx(theory.reach_probability(depth=theory.UniformDepth(), num_layers=6))
    empty = theory.empty_probability(reach=reach)
    assert empty == pytest.approx([((6 - layer) / 6) ** 5 for layer in range(1, 7)])


def test_layers_nobody_conveys_are_as_frequent_as_the_theory_says() -> None:
    devices = UniformDepthDevices(stragglers=1.0)
    reach = devices.reach(workload(4), everyone(3), 1.0)
    rounds = depths(devices, everyone(3 * MANY)).reshape(-1, 3)  # clients draw alike, so three at a time are a round
    deepest = rounds.max(axis=1)
    empty = np.array([(deepest < 4 - index).mean() for index in range(4)])
    assert abs(empty - theory.empty_probability(reach=reach)).max() < 0.01  # type: ignore[arg-type]


def test_exponential_layers_reach_what_the_erlang_formula_says() -> None:
    devices = ExponentialLayers(mean_layer_seconds=0.5)
    for local_steps, deadline in ((1, 1.0), (1, 4.0), (2, 2.0)):
        asked, cohort = workload(5, local_steps), everyone(MANY)
        reached = (devices.times(asked, cohort).steps_by(deadline) > 0).mean(axis=0)
        reach = devices.reach(asked, cohort, deadline)
        assert reach is not None
        assert abs(reached - reach[0]).max() < 0.015
        assert reach[-1] == pytest.approx([1 - gammaincc(5 - index, deadline / 0.5) for index in range(5)])


def test_exponential_layers_take_their_mean_time_independently() -> None:
    devices = ExponentialLayers(mean_layer_seconds=0.2)
    asked = workload(3, 2)
    times = devices.times(asked, everyone(MANY))
    assert times.whole.mean() == pytest.approx(6 * 0.2, rel=0.01)
    assert times.whole.std() == pytest.approx(np.sqrt(6) * 0.2, rel=0.03)
    assert devices.typical_seconds(asked) == pytest.approx(6 * 0.2)
    each = np.diff(times.ready[:, :, ::-1].reshape(MANY, 6), axis=1, prepend=0)
    assert each.mean(axis=0) == pytest.approx(np.full(6, 0.2), rel=0.05)
    assert abs(correlations(each.T)[~np.eye(6, dtype=bool)]).max() < 0.05
    again = devices.times(asked, everyone(MANY, round=2))
    assert abs(np.corrcoef(again.whole, times.whole)[0, 1]) < 0.05
