"""The command line: parses, calls, prints."""

from importlib.metadata import version
from typing import Annotated

import typer

from salf.cli.bench import bench
from salf.cli.compare import compare
from salf.cli.console import mistakes_reported
from salf.cli.layers import layers
from salf.cli.plan import plan
from salf.cli.report import report
from salf.cli.run import run
from salf.experiment import preset_names

app = typer.Typer(
    name="salf",
    help="Straggler-aware layer-wise federated learning: a round deadline that loses no work of the slow devices.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
_presets = f"Presets: {', '.join(preset_names())}."
app.command(epilog=_presets)(mistakes_reported()(run))
app.command(epilog=_presets)(mistakes_reported()(compare))
app.command(epilog=_presets)(mistakes_reported()(plan))
app.command()(mistakes_reported()(report))
app.command()(mistakes_reported()(layers))
app.command()(mistakes_reported()(bench))


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
    app()
