"""What all commands share: options, settings, progress, errors, tables, and numbers as text."""

import json
import math
import os
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import click
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.models import OptionInfo

from salf.errors import InvalidSetting, SalfError

ARGUMENTS = "salf.arguments"  # the whole command line, in click's `Context.meta`

# The commands' own texts explain arguments: not every pair of typer and click shows an argument's help.
Named = Annotated[str, typer.Argument(metavar="[PRESET|FILE.toml]", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as data.clients=100; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead, and show no progress.")]

_people = Console()
_errors = Console(stderr=True, soft_wrap=True)


def path_option(metavar: str, help_text: str) -> OptionInfo:
    """Return an option that takes the path of a file or folder."""
    option: OptionInfo = typer.Option(parser=given_path, metavar=metavar, help=help_text)
    return option


@contextmanager
def mistakes_reported() -> Iterator[None]:
    """Turn a mistake of the user, or an error of the system, into one message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" shows "?"; nothing fails
    warnings.formatwarning = _as_line
    try:
        yield
    except SalfError as error:
        fail(str(error), 2)
    except KeyboardInterrupt:
        fail("interrupted; nothing was kept, so run the same command again", 130)
    except BrokenPipeError:
        _abandon_output()
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):  # torch has no class for it
            raise
        fail("there is not enough memory; reduce the model, the batches or the number of clients", 2)
    except OSError as error:
        _abandon_output()
        fail(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), 2)


@contextmanager
def resumed_by(arguments: Sequence[str], folder: Path) -> Iterator[None]:
    """Tell a user who interrupts the block how to resume: with the complete command.

    Args:
        arguments: The command line that resumes, without `salf`.
        folder: Where the command keeps its runs; if nothing is there yet, there is nothing to resume.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not any(folder.rglob("experiment.toml")):
            raise
        fail(f"interrupted; resume with: {shlex.join(['salf', *arguments])}", 130)


def given_arguments() -> list[str]:
    """Return the command line of the running command, without `salf`."""
    return [*click.get_current_context().meta[ARGUMENTS]]


def given_path(text: str) -> Path:
    """Read the path of a file or folder; refuse an empty one, which an unset variable leaves."""
    if not text.strip():
        raise typer.BadParameter("it is empty; name a file or folder, or leave the option out")
    return Path(text)


def _as_line(message: Warning | str, *_: object, **__: object) -> str:
    """Write a warning as one line, without the place in the program that raises it."""
    return f"salf: {message}\n"


def fail(message: str, code: int) -> NoReturn:
    """Print one message to standard error and exit."""
    _errors.print(Text.assemble(("salf:", "bold red"), " ", message))
    sys.exit(code)


def _abandon_output() -> None:
    """Discard output that is still to be written and that no process reads: Python would complain at its end."""
    with suppress(OSError):  # where the output is not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(message: str | Text) -> None:
    """Print a line for people: without markup, and without line breaks where the output is not a terminal."""
    _people.print(message, highlight=False, markup=False, soft_wrap=not _people.is_terminal)


def plain_table(title: str, headings: Sequence[str], *, caption: str = "") -> Table:
    """Return an empty table; its first column holds names, the others numbers.

    Args:
        title: Printed as it is, without markup.
        headings: One per column; a line break starts a second line.
        caption: What the columns mean, below the table.
    """
    table = Table(
        title=Text(title),
        caption=Text(caption) if caption else None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    first, *others = headings
    table.add_column(Text(first), style="bold", no_wrap=True)
    for heading in others:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    return table


def show(table: Table) -> None:
    """Print a table for people; where the output is not a terminal, it gets the width that it needs."""
    width = None if _people.is_terminal else max(_people.width, _people.measure(table).maximum)
    _people.print(table, width=width)


def parse_settings(pairs: Sequence[str] | None) -> dict[str, object]:
    """Read KEY=VALUE pairs; a value is TOML, or else text.

    >>> parse_settings(["rounds=20", "data.root=../data", "model.hidden=[32, 16]"])
    {'rounds': 20, 'data.root': '../data', 'model.hidden': [32, 16]}
    """
    settings: dict[str, object] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise InvalidSetting(f"--set is '{pair}'; give KEY=VALUE, such as data.clients=100")
        try:
            settings[key.strip()] = tomllib.loads(f"value = {text.strip()}")["value"]
        except ValueError:
            settings[key.strip()] = text.strip()
    return settings


@contextmanager
def progress_bar(title: str, total: int, *, shown: bool) -> Iterator["Bar"]:
    """Show a bar on standard error if that is a terminal.

    Args:
        title: Printed before the bar.
        total: The number of steps, such as rounds.
        shown: Whether people read the output; machines get no bar.
    """
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    notes = TextColumn("{task.fields[note]}", markup=False)
    with Progress(*columns, notes, console=_errors, transient=True, disable=not (shown and _errors.is_terminal)) as bar:
        yield Bar(bar, bar.add_task(title, total=total, note=""))


class Bar:
    """A progress bar that is shown."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def show(self, done: int, note: str = "") -> None:
        """Move the bar to `done`; an empty note leaves the last one."""
        self._progress.update(self._task, completed=done)
        if note:
            self._progress.update(self._task, note=note)


def print_json(value: object) -> None:
    """Print one JSON object on standard output."""
    typer.echo(json.dumps(value, allow_nan=False))


def finite(value: float) -> float | None:
    """Return a number that JSON can hold: None in place of infinity and NaN."""
    return value if math.isfinite(value) else None


def counted(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural where needed.

    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(share: float, deviation: float = math.nan) -> str:
    """Write a share in per cent, with its deviation if that is known.

    >>> percent(0.9571), percent(0.9571, 0.01), percent(float("nan"))
    ('95.7 %', '95.7 % ± 1.0', '–')
    """
    if not math.isfinite(share):
        return "–"
    around = f" ± {100 * deviation:.1f}" if math.isfinite(deviation) else ""
    return f"{100 * share:.1f} %{around}"


def seconds(value: float) -> str:
    """Write virtual seconds; an infinite time is never.

    >>> seconds(1234.5), seconds(2.25), seconds(float("inf"))
    ('1234 s', '2.25 s', 'never')
    """
    if math.isinf(value):
        return "never"
    return f"{value:.0f} s" if value >= 100 else f"{value:.3g} s"


def megabytes(size: float) -> str:
    """Write a number of bytes in MB, without the unit.

    >>> megabytes(1_234_567), megabytes(123_456_789)
    ('1.2', '123')
    """
    value = size / 1e6
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"
