"""The pages about what goes in and what comes out say what the code says."""

import json
import re
from pathlib import Path

import pytest
from settings_reference import settings_reference
from typer.testing import CliRunner

from salf.cli import app
from salf.experiment.experiment import Experiment
from salf.experiment.sections import Section
from salf.runs.run import run_experiment

DOCS = Path(__file__).parents[2] / "docs"
ROOT = Section({"": Experiment})
PAGE = settings_reference()
LINES = PAGE.splitlines()
REMEDY = """docs/settings.md differs from the classes; write it again:

python tests/cases/settings_reference.py > docs/settings.md
"""


def test_the_page_is_up_to_date() -> None:
    if (DOCS / "settings.md").read_text(encoding="utf-8") != PAGE:
        pytest.fail(REMEDY, pytrace=False)


def test_every_key_has_a_place() -> None:
    assert not [key for key in ROOT.all_keys() if f"`{key}`" not in PAGE]


def test_no_heading_and_no_text_comes_twice() -> None:
    headings = [line for line in LINES if line.startswith("#")]
    assert len(set(headings)) == len(headings)
    # Several methods have the same few keys, so only tables may be equal.
    texts = [block for block in PAGE.split("\n\n") if not block.startswith("| key")]
    assert len(set(texts)) == len(texts)


def choices(section: Section) -> list[str]:
    below = [inner for key in section.all_keys() if "." not in key if (inner := section.inner(key)) is not None]
    own = [name for name in section.classes if section.tag]
    return own + [name for inner in below for name in choices(inner)]


def test_every_choice_has_a_heading() -> None:
    headings = [line for line in LINES if line.startswith("### ")]
    for choice in choices(ROOT):
        assert any(f'`"{choice}"`' in heading for heading in headings)


def test_ranges_and_defaults_are_those_of_the_checks() -> None:
    assert '| `data.partition` | `"iid"`, `"shards"`, `"dirichlet"`, `"label-order"` |  | `"iid"` |' in LINES
    assert "| `client.momentum` | number | at least 0 and less than 1 | `0.0` |" in LINES
    assert "| `client.cohort` | whole number | at least 1 | none |" in LINES
    assert "| `model.call` | text |  | must be given |" in LINES


def test_the_example_files_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "own.md").read_text(encoding="utf-8")
    files = re.findall(r"```\w+\n(# ([\w.]+)\n.*?)```", text, flags=re.DOTALL)
    assert [name for _, name in files] == ["net.py", "mine.toml"]
    for content, name in files:
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    experiment = Experiment.load("mine.toml", rounds=2)
    assert experiment.name == "mine"
    assert experiment.model.name == "factory"
    run = run_experiment(experiment)
    assert [record.clients for record in run.records] == [20, 20]
    assert run.records[0].contributors == (8, 8, 12)


def keys(value: object) -> set[str]:
    if isinstance(value, list):
        return {key for item in value for key in keys(item)}
    return {*value, *(key for item in value.values() for key in keys(item))} if isinstance(value, dict) else set()


@pytest.mark.parametrize(
    "command",
    [
        ("run", "digits", "--set", "rounds=1"),
        ("compare", "digits", "--set", "rounds=1", "--seeds", "1", "--jobs", "1"),
        ("layers", "digits"),
    ],
    ids=lambda command: command[0],
)
def test_every_key_of_the_commands_has_a_place(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(app, [*command, "--json"])
    assert outcome.exit_code == 0
    text = (DOCS / "records.md").read_text(encoding="utf-8")
    chapter = text.partition(f"\n`salf {command[0]}`")[2].partition("\n`salf ")[0]
    assert keys(json.loads(outcome.stdout)) == set(re.findall(r"`(\w+)`", "".join(_first_cells(chapter))))


def test_every_field_of_a_record_has_a_place(tmp_path: Path) -> None:
    run_experiment(Experiment.load("digits", rounds=1), tmp_path / "run")
    line = (tmp_path / "run" / "records.jsonl").read_text(encoding="utf-8")
    text = (DOCS / "records.md").read_text(encoding="utf-8")
    chapter = text.partition("## A round")[2].partition("##")[0]
    assert [*json.loads(line)] == [cell.strip("` ") for cell in _first_cells(chapter)]
    files = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    chapter = text.partition("## A run's folder")[2].partition("##")[0]
    assert files == {cell.strip("` ") for cell in _first_cells(chapter)}


def _first_cells(chapter: str) -> list[str]:
    """Return the first column of the tables in a chapter, without their headings."""
    return re.findall(r"^\| (`[^|]*) \|", chapter, flags=re.MULTILINE)
