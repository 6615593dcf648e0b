"""What all commands share: settings from the command line, progress for people, errors, numbers in words."""

import json
import math
import os
import sys
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from salf.errors import InvalidSetting, SalfError

# Arguments are explained in the commands' own texts: not every pair of typer and click shows an argument's help.
Named = Annotated[str, typer.Argument(metavar="[PRESET|FILE.toml]", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as data.clients=100; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead, and show no progress.")]

_people = Console()
_errors = Console(stderr=True, soft_wrap=True)


@contextmanager
def mistakes_reported() -> Iterator[None]:
    """Turn a mistake of the user's, or of the system's, into one message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no "±" gets a "?", not an error
    warnings.formatwarning = _as_line
    try:
        yield
    except SalfError as error:
        fail(str(error), 2)
    except KeyboardInterrupt:
        fail("interrupted; a run that is kept in a folder goes on with --resume", 130)
    except BrokenPipeError:
        _abandon_output()
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):  # torch has no class for it
            raise
        fail("there is not enough memory for this; make the model, the batches or the number of clients smaller", 2)
    except OSError as error:
        _abandon_output()
        fail(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), 2)


def given_path(text: str) -> Path:
    """Read the path of a file or folder: an empty one, of a variable that was never set, is a mistake."""
    if not text.strip():
        raise typer.BadParameter("it is empty; name a file or folder, or leave the option out")
    return Path(text)


def _as_line(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> str:
    """Write a warning as one line, without the place in the program where it comes from."""
    return f"salf: {message}\n"


def fail(message: str, code: int) -> NoReturn:
    """Print one message to standard error and exit."""
    _errors.print(Text.assemble(("salf:", "bold red"), " ", message))
    sys.exit(code)


def _abandon_output() -> None:
    """Send what is still to be written to nowhere, as nobody takes it: Python would complain while it shuts down."""
    with suppress(OSError):  # where the output is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(message: str | Text) -> None:
    """Print a line for people, as it is: no markup, and no line breaks where nobody looks at a terminal."""
    _people.print(message, highlight=False, markup=False, soft_wrap=not _people.is_terminal)


def show(table: Table) -> None:
    """Print a table for people; where the output is no terminal it gets the width that it needs."""
    width = None if _people.is_terminal else max(_people.width, _people.measure(table).maximum)
    _people.print(table, width=width)


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
        except ValueError:
            settings[key.strip()] = text.strip()
    return settings


@contextmanager
def progress_bar(title: str, total: int, *, shown: bool) -> Iterator["Bar"]:
    """Show a bar that counts rounds, on standard error, unless machines are reading or nobody is there to see it."""
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    notes = TextColumn("{task.fields[note]}", markup=False)
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


def counted(number: int, noun: str) -> str:
    """Write how many there are of something.

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
