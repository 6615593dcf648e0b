"""The sentence with which a page opens."""

import math
from dataclasses import replace

import pytest

from salf.report.headline import headline
from salf.report.numbers import Figures, Outcome

FIGURES = Figures("salf", (0,), 60, 60, 0.931, math.nan, 0.2, 120.0, 0.84, 1e6, 1e6, 0)


def outcome(method: str, *times: float, accuracy: float = 0.931, kept: float = 0.84, rounds: int = 60) -> Outcome:
    seeds = tuple(range(len(times)))
    figures = replace(FIGURES, method=method, seeds=seeds, accuracy=accuracy, work_kept=kept, rounds=rounds)
    return Outcome(figures, times)


INF, NAN = math.inf, math.nan
SALF, FEDAVG = outcome("salf", 58.2), outcome("fedavg", 122.0, kept=1.0)
DROP = outcome("drop", INF, accuracy=0.5, kept=0.4)
KEPT = "kept 84 % of its clients' finished work"
GOAL = "the target of 90 % test accuracy"
FIRST = f"salf was the first to reach {GOAL}, after 58.2 s of virtual time"
ACHIEVED = "salf on digits (seed 0) achieved 93.1 % test accuracy after 60 rounds and 120 s of virtual time"


@pytest.mark.parametrize(
    ("outcomes", "sentence"),
    [
        (
            [FEDAVG, SALF],
            (
                f"Of fedavg and salf on digits, {FIRST}, 2.10 times as fast as fedavg (122 s), "
                f"and {KEPT} (fedavg: 100 %)."
            ),
        ),
        (
            [FEDAVG, outcome("drop", 70.0), SALF],
            (
                f"Of fedavg, drop and salf on digits, {FIRST}, 1.20 times as fast as drop (70 s) "
                f"and 2.10 times as fast as fedavg (122 s), and {KEPT} (drop: 84 %, fedavg: 100 %)."
            ),
        ),
        (
            [outcome("salf", 58.0, 58.4), outcome("drop", INF, 50.0, kept=NAN)],
            (
                "Of salf and drop on digits (means of 2 seeds), salf was the only one to reach "
                f"{GOAL} in every run, after 58.2 s of virtual time, and {KEPT}."
            ),
        ),
        (
            [SALF, outcome("adel", 58.2)],
            f"Of salf and adel on digits, all reached {GOAL} at the same time, after 58.2 s of virtual time.",
        ),
        (
            [SALF, outcome("adel", 58.2), FEDAVG],
            (
                f"Of salf, adel and fedavg on digits, salf and adel reached {GOAL} at the same time, "
                "after 58.2 s of virtual time."
            ),
        ),
        (
            [DROP, outcome("salf", INF)],
            (
                f"Of drop and salf on digits, none reached {GOAL}; salf achieved the best test "
                f"accuracy, 93.1 % (drop: 50.0 %), and {KEPT} (drop: 40 %)."
            ),
        ),
        (
            [outcome(name, INF, accuracy=NAN) for name in ("drop", "salf")],
            "This page compares drop and salf on digits; no round has been tested yet.",
        ),
        ([SALF], f"{ACHIEVED}, reached {GOAL} after 58.2 s, and {KEPT}."),
        ([outcome("salf", INF, kept=NAN)], f"{ACHIEVED} and did not reach {GOAL}."),
        (
            [outcome("salf", 58.0, INF, rounds=50)],
            (
                "So far, salf on digits (mean of 2 seeds) achieved 93.1 % test accuracy after 50 rounds and 120 s "
                f"of virtual time, reached {GOAL} in 1 of 2 runs, and {KEPT}."
            ),
        ),
        (
            [outcome("salf", INF, accuracy=NAN, rounds=1)],
            (
                "So far, salf on digits (seed 0) has completed 1 round and 120 s of virtual time, "
                "and no round has been tested yet."
            ),
        ),
    ],
    ids=[
        "two",
        "three",
        "only one",
        "tie",
        "tie of some",
        "none",
        "untested",
        "single",
        "single misses",
        "some seeds",
        "single untested",
    ],
)
def test_one_sentence_says_who_won_by_how_much(outcomes: list[Outcome], sentence: str) -> None:
    assert headline(outcomes, ["digits"], 0.9) == sentence


def test_without_a_target_a_single_run_is_described_by_its_accuracy() -> None:
    assert headline([outcome("salf", INF)], ["digits"], NAN) == f"{ACHIEVED} and {KEPT}."


def test_many_methods_and_experiments_are_counted() -> None:
    many = [outcome(f"method {number}", 60.0 + 10 * number) for number in range(6)]
    assert headline(many, ["digits"], 0.9).startswith("Of 6 methods on digits, method 0 was the first")
    variants = [outcome(f"salf · rounds = {number}", 60.0 + 10 * number) for number in range(6)]
    assert headline(variants, ["a", "b"], 0.9).startswith("Of 6 variants, salf · rounds = 0 was the first")
