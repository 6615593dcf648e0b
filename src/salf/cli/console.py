"""What all commands share: settings from the command line, progress for people, errors, numbers in words."""

import json
import math
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from salf.errors import InvalidSetting

Named = Annotated[str, typer.Argument(metavar="[PRESET|FILE.toml]", help="A preset's name or an experiment file.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as data.clients=100.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines, and no progress.")]

people = Console()
_errors = Console(stderr=True, soft_wrap=True)


def fail(message: str, code: int) -> NoReturn:
    """Print one message to standard error and exit."""
    _errors.print(f"[bold red]salf:[/] {_escape(message)}", highlight=False)
    sys.exit(code)


def parse_settings(pairs: Sequence[str] | None) -> dict[str, object]:
    """Read KEY=VALUE pairs; a value is written as in TOML, and anything that is not TOML is text.

    >>> parse_settings(["rounds=20", "data.root=../data", "model.hidden=[32, 16]"])
    {'rounds': 20, 'data.root': '../data', 'model.hidden': [32, 16]}
    """
    settings: dict[str, object] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise InvalidSetting(f"--set takes KEY=VALUE, such as data.clients=100, not '{pair}'")
        try:
            settings[key.strip()] = tomllib.loads(f"value = {text.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key.strip()] = text.strip()
    return settings


@contextmanager
def progress_bar(title: str, total: int, *, shown: bool) -> Iterator["Bar"]:
    """Show a bar that counts rounds, on standard error, unless machines are reading or nobody is there to see it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    notes = TextColumn("{task.fields[note]}")
    with Progress(*columns, notes, console=_errors, transient=True, disable=not (shown and _errors.is_terminal)) as bar:
        yield Bar(bar, bar.add_task(title, total=total, note=""))


class Bar:
    """A running progress bar."""

    def __init__(self, progress: Progress, task: int) -> None:
        self._progress, self._task = progress, task

    def show(self, done: int, note: str = "") -> None:
        """Move the bar to `done`; an empty note leaves the last one."""
        fields = {"note": note} if note else {}
        self._progress.update(self._task, completed=done, **fields)  # type: ignore[arg-type]


def print_json(value: object) -> None:
    """Print one JSON object on standard output."""
    typer.echo(json.dumps(value, allow_nan=False))


def finite(value: float) -> float | None:
    """Return a number that JSON can hold: None for what is not finite."""
    return value if math.isfinite(value) else None


def percent(share: float) -> str:
    """Write a share in per cent.

    >>> percent(0.9571), percent(float("nan"))
    ('95.7 %', '–')
    """
    return f"{100 * share:.1f} %" if math.isfinite(share) else "–"


def seconds(value: float) -> str:
    """Write virtual seconds; an infinite time is never.

    >>> seconds(1234.5), seconds(2.25), seconds(float("inf"))
    ('1234 s', '2.25 s', 'never')
    """
    if math.isinf(value):
        return "never"
    return f"{value:.0f} s" if value >= 100 else f"{value:.3g} s"


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
