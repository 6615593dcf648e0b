"""The page of all settings says what the code says."""

from pathlib import Path

import pytest

from salf.experiment import Experiment
from salf.reference import settings_reference
from salf.settings import Section

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
ROOT = Section({"": Experiment})
REMEDY = """docs/settings.md is not what the code says; make it anew:

python -c "import pathlib, salf.reference as r; pathlib.Path('docs/settings.md').write_text(r.settings_reference(), 'utf-8')"
"""  # noqa: E501 - a command to copy


def test_the_page_is_up_to_date() -> None:
    if PAGE.read_text(encoding="utf-8") != settings_reference():
        pytest.fail(REMEDY, pytrace=False)


@pytest.mark.parametrize("key", list(ROOT.all_keys()))
def test_every_key_has_a_place(key: str) -> None:
    assert f"`{key}`" in settings_reference()


def choices(section: Section) -> list[str]:
    below = [inner for key in section.all_keys() if "." not in key if (inner := section.inner(key)) is not None]
    own = [name for name in section.classes if section.tag]
    return own + [name for inner in below for name in choices(inner)]


@pytest.mark.parametrize("choice", choices(ROOT))
def test_every_choice_has_a_heading(choice: str) -> None:
    headings = [line for line in settings_reference().splitlines() if line.startswith("### ")]
    assert any(f'`"{choice}"`' in heading for heading in headings)


def test_ranges_and_defaults_are_those_of_the_checks() -> None:
    lines = settings_reference().splitlines()
    assert '| `data.partition` | `"iid"`, `"shards"`, `"dirichlet"`, `"label-order"` |  | `"iid"` |' in lines
    assert "| `client.momentum` | number | at least 0 and less than 1 | `0.0` |" in lines
    assert "| `client.cohort` | whole number | at least 1 | none |" in lines
    assert "| `model.call` | text |  | must be given |" in lines
