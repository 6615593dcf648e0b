"""Learning rates are chosen method by method, on examples that are neither trained on nor tested on."""

from pathlib import Path

import pytest
import torch
from command_cases import plain, salf, settings, tiny

from salf.data import load
from salf.errors import InvalidSetting
from salf.runs.comparison import Tuning, compare, tune
from salf.runs.run import run_experiment
from salf.runs.run_files import read_experiment, read_records


def test_the_best_rate_of_each_method_is_compared(tmp_path: Path) -> None:
    tuning = tune(tiny(rounds=40), ["fedavg", "drop"], [1e-6, 0.3], 9, tmp_path)
    assert {method: [*tried] for method, tried in tuning.accuracies.items()} == {
        "fedavg": [1e-6, 0.3],
        "drop": [1e-6, 0.3],
    }
    assert tuning.learning_rates["fedavg"] == 0.3
    kept = read_experiment(tmp_path / "fedavg" / "tuning" / "lr-0.3")
    assert (kept.client.lr, kept.seed, kept.method.name) == (0.3, 9, "fedavg")
    comparison = compare(tiny(rounds=6), ["fedavg", "drop"], 1, learning_rates={"fedavg": 0.3, "drop": 0.01})
    rates = {method: runs[0].experiment.client.lr for method, runs in comparison.runs.items()}
    assert rates == {"fedavg": 0.3, "drop": 0.01}


def test_rates_are_judged_by_examples_that_were_held_out(tmp_path: Path) -> None:
    experiment = tiny(rounds=3, seed=4)
    held_out = load("digits", None).held_out(seed=4)
    expected = run_experiment(experiment, dataset=held_out).records
    tune(experiment, [experiment.method.name], [experiment.client.lr], 4, tmp_path)
    folder = tmp_path / experiment.method.name / "tuning" / f"lr-{experiment.client.lr:g}"
    assert read_records(folder) == [*expected]
    whole = load("digits", None)
    assert len(held_out) + len(held_out.test_labels) == len(whole)
    together = torch.cat([held_out.inputs, held_out.test_inputs])
    assert torch.equal(together.flatten(1).sum(1).sort().values, whole.inputs.flatten(1).sum(1).sort().values)


def test_of_equally_good_rates_the_smallest_is_taken() -> None:
    assert Tuning({"salf": {0.3: 0.9, 0.1: 0.9, 1.0: 0.2}}).learning_rates == {"salf": 0.1}


def test_a_rate_at_the_end_of_those_tried_is_said_to_be_one() -> None:
    tried = {
        "salf": {0.1: 0.8, 0.3: 0.9, 1.0: 0.2},
        "drop": {0.1: 0.1, 0.3: 0.2, 1.0: 0.3},
        "fedavg": {0.1: 0.9, 0.3: 0.9, 1.0: 0.3},
        "fedbuff": {0.1: 0.9},
    }
    assert Tuning(tried).edges == {"drop": "largest", "fedavg": "smallest"}


def test_the_command_says_which_rate_each_method_was_given(tmp_path: Path) -> None:
    options = ["--methods", "salf,drop", "--seeds", "1", "--jobs", "1", "--tune", "1e-7,1e-6"]
    result = salf("compare", *settings(rounds=1), *options, "--out", tmp_path / "compared")
    assert result.code == 0
    # Too small to change what a model says: of equally good rates the smallest is taken.
    said = "the best of 1e-7,1e-6 on held-out examples: salf 1e-07 (the smallest tried), drop 1e-07 (the smallest"
    assert said in plain(result.out)


@pytest.mark.parametrize("rates", [[], [0.1, 0.1], [-1.0], [0.0], [float("nan")], [float("inf")]])
def test_rates_that_are_none_are_refused(rates: list[float]) -> None:
    with pytest.raises(InvalidSetting, match="choose different positive numbers"):
        tune(tiny(), ["salf"], rates, 1)
