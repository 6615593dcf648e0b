"""What people read is plain English: the words of the language rules' list do not occur."""

from pathlib import Path

import pytest
from language import forbidden, problems_of

ROOT = Path(__file__).parents[1]
TEXTS = sorted(
    file.relative_to(ROOT)
    for place in ("src", "docs", "examples", "benchmarks", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    for file in ([ROOT / place] if (ROOT / place).is_file() else (ROOT / place).rglob("*"))
    if file.suffix in {".py", ".md", ".toml", ".jinja", ".html", ".sh"}
)


def test_there_are_texts() -> None:
    assert len(TEXTS) > 150


@pytest.mark.parametrize(
    "place", ["src", "docs", "examples", "benchmarks", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
)
def test_no_forbidden_word_occurs(place: str) -> None:
    texts = [file for file in TEXTS if file.parts[0] == place]
    assert texts
    assert {str(file): words for file in texts if (words := forbidden((ROOT / file).read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("Whoever is late loses; choose a later deadline", "says 'Whoever'"),
        ("client.lr is -1.0", 'has no remedy after "; "'),
        ("client.lr is -1.0; mend that", 'has no remedy after "; "'),
        ("client.lr is -1.0; choose a number greater than 0.", "ends with a full stop"),
        (f"{list(range(1000))}; choose fewer", "has 4904 characters"),
    ],
)
def test_a_bad_message_is_noticed(message: str, problem: str) -> None:
    assert problem in problems_of(message)
