"""The command line: parses, calls, prints."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from salf.cli.compare import compare
from salf.cli.console import fail
from salf.cli.layers import layers
from salf.cli.run import run
from salf.errors import SalfError

app = typer.Typer(
    name="salf",
    help="Straggler-aware layer-wise federated learning: a round deadline that loses no work of the slow devices.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(run)
app.command()(compare)
app.command()(layers)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"salf {version('salf')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a mistake of the user's is one message and exit code 2, never a traceback."""
    try:
        app()
    except SalfError as error:
        fail(str(error), 2)
    except KeyboardInterrupt:
        fail("interrupted; a run kept with --out goes on with --resume", 130)
    except BrokenPipeError:
        # Whoever read the output has gone; keep Python from complaining about it while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
