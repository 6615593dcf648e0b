"""`salf plan`: what it prints, keeps and refuses."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from command_cases import only_json, plain, refusal, salf, write_models

EXPONENTIAL = ["--set", "devices.kind=exponential", "--set", "data.clients=8", "--deadlines", "2,4,8"]


@pytest.fixture
def times(tmp_path: Path) -> Path:
    path = tmp_path / "times.csv"
    path.write_text("client,seconds\nphone,2.0\ntablet,1.0\nlaptop,0.5\nphone,2.2\n")
    return path


def test_a_plan_for_people() -> None:
    result = salf("plan", *EXPONENTIAL, "--budget", "400")
    assert (result.code, result.err) == (0, "")
    text = plain(result.out)
    for part in ("digits on exponential: 8 clients a round, 4 layers", "400 s to spend", "P(missed)", "recommended"):
        assert part in text
    assert "recommended: a deadline of" in text
    assert "adaptive deadlines: " in text
    assert "beware" not in text
    assert max(map(len, result.out.splitlines()[:-2])) <= 80


def test_a_plan_for_machines_agrees_with_the_exponential_model() -> None:
    found = only_json(salf("plan", *EXPONENTIAL, "--json"))
    assert found["layers"] == ["conv1", "conv2", "fc1", "fc2"]
    assert [row["deadline_s"] for row in found["deadlines"]] == [2.0, 4.0, 8.0]
    assert found["recommended"] in found["deadlines"]
    # The Erlang tails 1 − P(d, 2) of the depths 4 … 1, to the power of eight clients.
    tails = [0.857123, 0.676676, 0.406006, 0.135335]
    assert found["deadlines"][0]["empty"] == pytest.approx([tail**8 for tail in tails], rel=1e-4)
    assert found["constants"]["num_clients"] == 8
    assert found["budget_s"] == pytest.approx(250 * found["deadlines"][1]["round_s"])


def test_a_model_of_the_users_on_measured_times(tmp_path: Path, times: Path) -> None:
    models = write_models(tmp_path)
    drawing = tmp_path / "plan.svg"
    words = ["plan", "--model", f"{models}:plain", "--example-shape", "8,8", "--times", times, "--budget", "60"]
    result = salf(*words, "--out", drawing, columns=200)
    assert (result.code, result.err) == (0, "")
    assert "3 clients a round, 2 layers" in plain(result.out)
    assert ET.fromstring(drawing.read_text()).tag.endswith("svg")
    assert salf(*words, "--out", drawing.with_suffix(".png")).code == 0
    found = only_json(salf(*words, "--json"))
    assert found["own_deadline_s"] == 1.0
    assert found["clients"] == 3
    assert found["waiting"]["round_s"] == pytest.approx(2.1, rel=0.02)


def test_permanently_slow_devices_bring_a_warning() -> None:
    words = ["plan", "--set", "devices.kind=physical", "--set", "devices.speed_sigma=1.0", "--deadlines", "0.3"]
    text = plain(salf(*words, columns=300).out)
    assert "beware: clients take part unequally in layer conv1" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "plan.pdf"], "--out is 'plan.pdf'; name a file that ends in .png or .svg"),
        (["--deadlines", "1,soon"], "--deadlines is '1,soon'; give positive numbers"),
        (["--deadlines", "0"], "--deadlines is '0'; give positive numbers"),
        (["--budget", "-3"], "--budget is -3; give a positive number of seconds"),
        (["--budget", "0.01"], "the budget of 0.01 s is shorter than a round"),
        (["--steps", "adele"], "--steps is 'adele' (did you mean 'adel'?); choose one of adel, decaying, constant"),
        (["--constant", "smooth=3"], "--constant names 'smooth' (did you mean 'smoothness'?)"),
        (["--constant", "smoothness=steep"], "--constant smoothness is 'steep'; give a number of at least 0"),
        (
            ["--constant", "smoothness=0.5"],
            "--constant: strong_convexity is 1.0; choose a number greater than 0 and at most smoothness",
        ),
        (["--example-shape", "3,4"], "describe a model of your own"),
        (["--model", "torch.nn:Identity"], "--model torch.nn:Identity needs the shape of an input"),
        (["--model", "m:f", "--example-shape", "3", "--set", "model.name=mlp"], "--set model.name and --model both"),
        (["--times", "nowhere.csv"], "cannot read the times in nowhere.csv"),
        (["--set", "devices.kind=quick"], "devices.kind"),
    ],
)
def test_mistakes_are_one_line(options: list[str], message: str) -> None:
    assert message in refusal("plan", *options)


def test_two_answers_to_who_takes_part_are_refused(times: Path) -> None:
    assert "--set data.clients and --times both choose the clients" in refusal(
        "plan", "--times", times, "--set", "data.clients=9"
    )
    message = refusal("plan", "--times", times, "--set", "client.cohort=5")
    assert "client.cohort is 5, but --times has 3 clients" in message
