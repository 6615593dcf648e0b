"""How deadlines follow the rounds that they have seen."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_cases import MemoryGrid, a_loop, a_model, initial, inner, sending
from hypothesis import given, strategies as st

from salf import theory
from salf.errors import InvalidSetting
from salf.flower import Adaptive, DeadlineSchedule, Fixed, Quantile, RoundTimes, SalfStrategy
from salf.flower.server.federation_folder import FederationFolder

seconds = st.floats(0.1, 1000)
rounds = st.builds(RoundTimes, seconds, st.lists(seconds, max_size=8).map(tuple), st.integers(0, 8), st.floats(0, 1))


@given(st.lists(rounds, max_size=12), st.floats(0.01, 1), st.floats(0.1, 5), st.floats(5, 50), st.floats(50, 500))
def test_every_deadline_stays_between_its_bounds(
    history: list[RoundTimes], share: float, lowest: float, first: float, highest: float
) -> None:
    for deadline in (
        Quantile(q=share, first=first, lowest=lowest, highest=highest),
        Adaptive(aim=min(share, 0.99), first=first, lowest=lowest, highest=highest),
    ):
        assert lowest <= deadline.seconds(history) <= highest
        assert deadline.seconds([]) == first


def test_a_quantile_finds_the_time_that_a_share_of_the_clients_needs() -> None:
    """The clients' times are log-normal; only those that meet the deadline are observed."""
    random = np.random.default_rng(1)
    deadline = Quantile(q=0.8, first=1.0, rounds=10)
    history: list[RoundTimes] = []
    for _ in range(80):
        given_seconds = deadline.seconds(history)
        needed = random.lognormal(3.0, 0.8, size=50)
        whole = tuple(needed[needed <= given_seconds].tolist())
        history.append(RoundTimes(given_seconds, whole, 50 - len(whole), 1.0))
    finished = np.mean([len(times.whole) / 50 for times in history[-40:]])
    assert 0.75 <= finished <= 0.9


def test_adaptive_finds_the_deadline_of_its_aim() -> None:
    random = np.random.default_rng(2)
    deadline = Adaptive(aim=0.7, first=100.0)
    history: list[RoundTimes] = []
    for number in range(200):
        slower = 1.0 if number < 100 else 3.0  # the devices change on the way
        given_seconds = deadline.seconds(history)
        share = float(np.minimum(1.0, given_seconds / (slower * random.lognormal(2.0, 0.5, size=30))).mean())
        history.append(RoundTimes(given_seconds, (), 30, share))
    for part in (history[60:100], history[160:]):
        assert np.mean([times.share for times in part]) == pytest.approx(0.7, abs=0.03)


def test_a_schedule_continues_when_a_run_is_resumed(tmp_path: Path) -> None:
    model, layers = a_model()
    constants = theory.Constants(
        smoothness=2, strong_convexity=1, gradient_variance=4, second_moment=1, heterogeneity=0, num_clients=2
    )
    chosen = theory.adaptive_deadlines(
        constants=constants, num_layers=3, rounds=60, total_seconds=600.0, initial_error=1.0, rates=[16.0] * 2
    ).deadlines_seconds
    strategy = SalfStrategy(inner(2), deadline=DeadlineSchedule(chosen), layers=layers)
    folder = FederationFolder(tmp_path)
    for rounds in (2, 55, 62):  # a resumed run knows the last 50 rounds
        grid = MemoryGrid({node: sending(3) for node in (1, 2)})
        a_loop(grid, strategy, folder=folder).run(initial(model), rounds)
    used = [record.deadline_s for record in folder.records()]
    assert used == pytest.approx([*chosen, chosen[-1], chosen[-1]])
    assert sum(chosen) == pytest.approx(600.0)
    assert chosen[0] > chosen[-1]


def test_rounds_without_clients_are_ignored() -> None:
    empty = RoundTimes(10.0, (), 0, 0.0)
    known = RoundTimes(20.0, (5.0,), 0, 1.0)
    assert Adaptive(aim=0.5, first=7.0).seconds([empty]) == 7.0
    assert Quantile(q=0.5, first=7.0).seconds([empty]) == 7.0
    assert Quantile(q=0.5, first=7.0).seconds([known, empty]) == 5.25


def test_each_round_gets_the_deadline_that_its_history_gives() -> None:
    model, layers = a_model()
    grid = MemoryGrid({node: sending(3) for node in (1, 2)})  # each reports that it took one second
    strategy = SalfStrategy(inner(2), deadline=Quantile(q=1.0, first=10.0), layers=layers)
    result = a_loop(grid, strategy).run(initial(model), 3)
    given_seconds = [result.train_metrics_clientapp[number]["salf-deadline-s"] for number in (1, 2, 3)]
    assert given_seconds == pytest.approx([10.0, 1.05, 1.05])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Fixed(0), "deadline_seconds is 0"),
        (lambda: Fixed(float("inf")), "deadline_seconds is inf"),
        (lambda: Fixed(True), "deadline_seconds is True"),
        (lambda: DeadlineSchedule([]), "deadlines_seconds is empty"),
        (lambda: DeadlineSchedule([3.0, 0.0]), r"deadlines_seconds\[1\] is 0.0"),
        (lambda: Quantile(q=0.0, first=1.0), "q is 0.0"),
        (lambda: Quantile(q=0.5, first=1.0, rounds=0), "rounds is 0"),
        (lambda: Quantile(q=0.5, first=-1.0), "first is -1.0"),
        (lambda: Quantile(q=0.5, first=1.0, lowest=2.0), "between lowest = 2.0 and highest"),
        (lambda: Adaptive(aim=1.0, first=1.0), "aim is 1.0"),
        (lambda: Adaptive(aim=0.5, first=1.0, gain=0.0), "gain is 0.0"),
    ],
)
def test_wrong_arguments_are_refused(make: Any, words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        make()
