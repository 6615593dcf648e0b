"""The page `docs/works-with.md` names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "works-with.md").read_text(encoding="utf-8")


def test_every_row_names_a_test() -> None:
    rows = [row for row in PAGE.splitlines() if row.startswith("| ") and "---" not in row and "| test |" not in row]
    assert len(rows) > 30
    unproven = [row for row in rows if not re.search(r"`[\w/]+(\.py|/)`|the same", row)]
    assert unproven == []
    for path in re.findall(r"`([\w/]+(?:\.py|/))`", PAGE):
        assert (ROOT / "tests" / path).exists() or (ROOT / "tests/client/works_with" / path).exists(), path


def test_the_descriptions_are_names_of_tests() -> None:
    tests = " ".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")).lower()
    named = [part.strip() for text in re.findall(r"(?:\.py`|file): ([^|]+)", PAGE) for part in text.split(";")]
    assert len(named) > 15
    assert [
        part for part in named if part.lower().replace(" ", "_").replace("'", "").replace("-", "_") not in tests
    ] == []
