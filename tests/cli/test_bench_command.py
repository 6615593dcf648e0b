"""`salf bench`: what it measures, how it tells it, and that its cases can be measured at all."""

import json
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_cases import only_json, plain, refusal, salf

from salf.bench import Case, Figure, all_cases
from salf.bench.case import time_in_turn
from salf.engines.accelerator import CPU

CASES = [
    Case("fused/small", "one against the other", 0.8, "≤", "×", lambda _: Figure(0.5, {"pairs": 5})),
    Case("round/large", "another", 95, "≥", "%", lambda seconds: Figure(90 + seconds)),
    Case("growth/mlp", "growth", 1.05, "≤", "", lambda _: Figure(1.0, {"clients": [3, 30], "seconds": [0.1, 1.0]})),
]


@pytest.fixture(autouse=True)
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salf.cli.bench.all_cases", lambda device: CASES)


def test_figures_are_told_beside_their_targets() -> None:
    result = salf("bench", "--seconds", "2", columns=120)
    assert (result.code, result.err) == (0, "")
    text = plain(result.out)
    assert "0.5 ×" in text
    assert "≤ 0.8 ×" in text
    assert text.count("met") == 2
    assert text.count("missed") == 1


def test_figures_are_kept_with_a_plot_and_printed_for_machines(tmp_path: Path) -> None:
    found = only_json(salf("bench", "--out", tmp_path / "new" / "bench", "--json"))
    assert json.loads((tmp_path / "new" / "bench" / "bench.json").read_text()) == found
    assert {path.name for path in (tmp_path / "new" / "bench").iterdir()} == {
        "bench.json",
        "clients.png",
        "clients.svg",
    }
    assert [figure["name"] for figure in found["figures"]] == ["fused/small", "round/large", "growth/mlp"]
    assert [figure["met"] for figure in found["figures"]] == [True, True, True]
    assert found["figures"][0]["pairs"] == 5
    assert found["machine"]["cores"] >= 1
    assert (found["machine"]["device"], found["left_out"]) == ("cpu", [])


def test_only_some_figures_are_measured() -> None:
    found = only_json(salf("bench", "--only", "round, fused/s", "--json"))
    assert [figure["name"] for figure in found["figures"]] == ["fused/small", "round/large"]
    assert "--only names 'rounds', which is not measured" in refusal("bench", "--only", "rounds")


def test_a_device_that_is_none_is_refused() -> None:
    assert "device is 'gpu'; choose one of cpu, cuda, cuda:N" in refusal("bench", "--device", "gpu")


def test_what_is_about_the_cpu_is_left_out_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [*CASES, replace(CASES[1], name="memory/registered", cpu_only=True)]
    monkeypatch.setattr("salf.cli.bench.all_cases", lambda device: cases)
    monkeypatch.setattr("salf.cli.bench.find_device", torch.device)
    monkeypatch.setattr("salf.cli.bench.title_of", lambda device: "Abacus 9")
    found = only_json(salf("bench", "--device", "cuda", "--json"))
    assert (found["machine"]["device"], found["left_out"]) == ("Abacus 9", ["memory/registered"])
    assert [figure["name"] for figure in found["figures"]] == [case.name for case in CASES]
    text = plain(salf("bench", "--device", "cuda", columns=120).out)
    assert "Abacus 9" in text
    assert "not measured on cuda, because they are about the CPU: memory/registered" in text


@pytest.mark.parametrize("seconds", ["nan", "inf"])
def test_seconds_without_an_end_are_refused(seconds: str) -> None:
    assert f"--seconds is {seconds}; give a number of seconds" in refusal("bench", "--seconds", seconds)


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot make the folder" in refusal("bench", "--out", tmp_path / "file" / "bench")


def test_a_ratio_is_that_of_two_acts_timed_in_turn() -> None:
    order: list[str] = []

    def act(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    figure = time_in_turn(lambda: act("slow", 0.12), lambda: act("fast", 0.04), 0.0)
    assert figure.value > 2
    assert order == ["slow", "fast"] * 7  # two of them do not count
    assert (figure.details["pairs"], figure.details["times"]) == (5, 1)


def test_what_is_short_is_done_several_times_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def act(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds

    figure = time_in_turn(lambda: act("one", 0.25), lambda: act("other", 2**-7), 0.0)
    assert order == ["one", "other"] * 2 + (["one"] + ["other"] * 4) * 5
    assert figure.value == 32
    details = {"seconds": 0.25, "against_seconds": 2**-7, "pairs": 5, "times": 1, "against_times": 4}
    assert figure.details == details


def test_a_target_is_a_least_or_a_most() -> None:
    most, least = CASES[0], replace(CASES[0], bound="≥")
    assert (most.is_met(0.8), most.is_met(0.81), least.is_met(0.8), least.is_met(0.79)) == (True, False, True, False)


def test_every_target_of_the_engines_is_measured() -> None:
    names = [case.name for case in all_cases(CPU)]
    kinds = Counter(name.partition("/")[0] for name in names)
    memory = 0 if sys.platform == "win32" else 2
    assert kinds == Counter(fused=6, round=2, loop=1, deadline=3, aggregate=2, growth=1, memory=memory, start=2)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["round/mlp-30", "start/help", "start/import"])
def test_the_cases_can_be_measured(name: str) -> None:
    case = next(case for case in all_cases(CPU) if case.name == name)
    assert case.measure(0.0).value > 0
