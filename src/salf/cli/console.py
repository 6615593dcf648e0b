"""The output of all commands: lines, tables, JSON, progress and errors."""

import json
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

import click
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from salf.cli.quantities import json_value
from salf.errors import SalfError

ARGUMENTS = "salf.arguments"  # the whole command line, in click's `Context.meta`

_people = Console()
_errors = Console(stderr=True, soft_wrap=True)


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
    """Print one JSON object on standard output; see `json_value`."""
    typer.echo(json.dumps(json_value(value), allow_nan=False))
