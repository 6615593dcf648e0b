"""The output of all commands: lines, tables, JSON, progress and errors."""

import json
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn, TypeVar

import click
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from salf.errors import SalfError


def json_value(value: object) -> object:
    """Return what JSON can hold: None stands for numbers that are not finite, lists for tuples.

    >>> json_value({"mean": math.nan, "values": (1, 2.5, math.inf)})
    {'mean': None, 'values': [1, 2.5, None]}
    """
    if isinstance(value, Mapping):
        return {key: json_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def counted(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural where needed.

    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(share: float, deviation: float = math.nan) -> str:
    """Write a share in per cent, with its deviation if that is known.

    Args:
        share: Between 0 and 1; NaN if it is not known.
        deviation: The standard deviation of the share; NaN if it is not known.

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


ARGUMENTS = "salf.arguments"  # the whole command line, in click's `Context.meta`
Row = TypeVar("Row")
_people = Console()
_errors = Console(stderr=True, soft_wrap=True)


@contextmanager
def mistakes_reported() -> Iterator[None]:
    """Turn a mistake of the user, or an error of the system, into one message and an exit code.

    Exit codes: 2 for a mistake or an error of the system, 130 for an interrupt, 1 for an output that was closed. Any
    other exception is a fault of salf, and passes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" shows "?"; nothing fails
    warnings.formatwarning = _as_line
    try:
        yield
    except SalfError as error:
        fail(str(error), 2)
    except KeyboardInterrupt:
        fail("interrupted, and nothing was kept; run the same command again", 130)
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
        folder: Where the command keeps its runs; an empty one means that no run can be resumed.
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


def _as_line(message: Warning | str, *_: object, **__: object) -> str:
    """Write a warning as one line, without the place in the program that raises it."""
    return f"salf: {message}\n"


def fail(message: str, code: int) -> NoReturn:
    """Print one message to standard error and exit.

    Args:
        message: What is wrong and what to do, without a full stop.
        code: The exit code of the process.
    """
    _errors.print(Text.assemble(("salf:", "bold red"), " ", message))
    sys.exit(code)


def _abandon_output() -> None:
    """Discard output that is still to be written and that no process reads: Python would complain at its end."""
    with suppress(OSError):  # where the output is not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(message: str | Text) -> None:
    """Print a line for people: without markup, and without line breaks where the output is not a terminal."""
    _people.print(message, highlight=False, markup=False, soft_wrap=not _people.is_terminal)


def table_of(
    title: str, columns: Mapping[str, Callable[[Row], str | Text]], rows: Iterable[Row], *, caption: str = ""
) -> Table:
    """Return a table; its first column holds names, the others numbers.

    Args:
        title: Printed as it is, without markup.
        columns: For each heading, the text of a row's cell; a line break starts a heading's second line.
        rows: What the rows show, from top to bottom.
        caption: What the columns mean, below the table.

    >>> table = table_of("two", {"number": str, "square": lambda number: f"{number**2}"}, [2, 3])
    >>> table.row_count, [str(cell) for cell in table.columns[1].cells]
    (2, ['4', '9'])
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
    for place, heading in enumerate(columns):
        table.add_column(
            Text(heading), style="" if place else "bold", justify="right" if place else "left", no_wrap=True
        )
    for row in rows:
        cells = (cell(row) for cell in columns.values())
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    return table


def show(table: Table) -> None:
    """Print a table for people; where the output is not a terminal, it gets the width that it needs."""
    width = None if _people.is_terminal else max(_people.width, _people.measure(table).maximum)
    _people.print(table, width=width)


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


@dataclass(frozen=True)
class Bar:
    """A progress bar that is shown.

    Args:
        progress: What draws it.
        task: Its number there.
    """

    progress: Progress
    task: TaskID

    def show(self, done: int, note: str = "") -> None:
        """Move the bar.

        Args:
            done: How many steps are done.
            note: What to say beside the bar; an empty note leaves the last one.
        """
        self.progress.update(self.task, completed=done)
        if note:
            self.progress.update(self.task, note=note)


def json_file(value: object) -> bytes:
    """Return the content of a file that holds one JSON object; see `json_value`."""
    return (json.dumps(json_value(value), indent=2, allow_nan=False) + "\n").encode()


def print_json(value: object) -> None:
    """Print one JSON object on standard output; see `json_value`."""
    typer.echo(json.dumps(json_value(value), allow_nan=False))
