"""The page about Flower shows the very difference between the two example apps."""

import difflib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APPS = ROOT / "examples" / "flower"
PAGE = (ROOT / "docs" / "flower.md").read_text()


@pytest.mark.parametrize("name", ["client_app.py", "server_app.py"])
def test_the_page_shows_exactly_what_changes(name: str) -> None:
    before, after = ((APPS / app / "digits" / name).read_text().splitlines() for app in ("before", "after"))
    lines = difflib.unified_diff(before, after, n=1, lineterm="")
    shown = "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))
    assert f"```diff\n{shown}\n```" in PAGE


@pytest.mark.parametrize("name", ["digits/task.py", "digits/__init__.py", "pyproject.toml"])
def test_everything_else_stays(name: str) -> None:
    assert (APPS / "before" / name).read_text() == (APPS / "after" / name).read_text()
