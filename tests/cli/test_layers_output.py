"""What `salf layers` prints, and what it refuses."""

import re
from pathlib import Path

import pytest
from command_cases import only_json, plain, refusal, salf, write_models

from salf.experiment.experiment import Experiment


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return write_models(tmp_path)


def test_layers_of_a_file_and_what_backpropagation_costs(models: Path) -> None:
    result = salf("layers", f"{models}:plain", "--example-shape", "8,8")
    assert (result.code, result.err) == (0, "")
    assert "Sequential: 2 layers, input to output, forward pass" in result.out
    assert re.search(r"(?m)^1 +1,040 +4,160 ", result.out)
    found = only_json(salf("layers", f"{models}:plain", "--example-shape", "8,8", "--json"))
    first, last = found["layers"]
    # A layer costs 2 x inputs x outputs for its weights' gradient, the last one as much again for its inputs'; what is
    # done element by element adds about a hundredth.
    assert first["backward_flops"] == pytest.approx(2 * 64 * 16, rel=0.02)
    assert last["backward_flops"] == pytest.approx(2 * 2 * 16 * 10, rel=0.02)
    assert found["forward_flops"] == pytest.approx(2 * (64 * 16 + 16 * 10), rel=0.02)
    assert first["complete_after"] == 1.0
    assert last["complete_after"] == last["share"] == pytest.approx(640 / (640 + 2048), rel=0.02)


def test_without_an_example_the_order_is_that_of_declaration(models: Path) -> None:
    found = only_json(salf("layers", f"{models}:plain", "--json"))
    assert (found["order"], found["forward_flops"]) == ("declared", None)
    assert [set(row) for row in found["layers"]] == [{"layer", "parameters", "bytes"}] * 2
    assert "--example-shape 3,32,32 to observe it" in plain(salf("layers", f"{models}:plain").out)


def test_layers_of_a_preset_and_of_an_experiment_file(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(Experiment.load("digits").to_toml())
    for named in ("digits", own):
        found = only_json(salf("layers", named, "--json"))
        assert [row["layer"] for row in found["layers"]] == ["conv1", "conv2", "fc1", "fc2"]
        assert found["order"] == "observed"


def test_layers_of_whole_numbers_in_groups_and_what_is_left_out(models: Path) -> None:
    words = ["layers", f"{models}:Net", "--example-shape", "7", "--integers"]
    found = only_json(salf(*words, "--json"))
    assert [row["layer"] for row in found["layers"]] == ["words", "head"]
    assert found["unused"] == ["spare.weight", "spare.bias"]
    assert "no gradient reaches spare.weight, spare.bias: clients never send them" in plain(salf(*words).out)
    grouped = only_json(salf("layers", f"{models}:plain", "--group", "1, 3", "--json"))
    assert [row["layer"] for row in grouped["layers"]] == ["1", "3"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("without", [], "it has no parameters"),
        ("broken", [], "no weights [/bold] here"),
        ("nothing", [], "nothing"),
        ("plain", ["--example-shape", "0"], "--example-shape is '0'; give whole numbers of at least 1"),
        ("plain", ["--example-shape", "8,"], "--example-shape is '8,'; give whole numbers of at least 1"),
        ("plain", ["--example-shape", "9" * 30], "does not fit into memory; reduce it"),
        ("plain", ["--example-shape", "5"], "Sequential"),
        ("plain", ["--group", "nowhere"], "nowhere"),
        ("Shift", ["--example-shape", "4,4"], "Shift"),
    ],
)
def test_bad_models_are_one_line(name: str, options: list[str], message: str, models: Path) -> None:
    assert message in refusal("layers", f"{models}:{name}", *options)
