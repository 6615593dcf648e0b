"""The command line. Each command's module is imported when the command is used, so `salf --help` answers at once."""

from importlib import import_module
from importlib.metadata import version
from typing import Annotated

import click
import typer
from typer.core import TyperCommand, TyperGroup

from salf.cli.console import ARGUMENTS, mistakes_reported

# What `salf --help` says about each command: the first line of the command's own help, as a test checks.
COMMANDS = {
    "run": "Run one experiment with one method, on a virtual clock.",
    "compare": "Compare methods on equal terms: same data, seeds and devices.",
    "plan": "Show the effect of each deadline on a model and its devices, and recommend one.",
    "report": "Write one HTML page about runs.",
    "layers": "List a model's layers, from input to output.",
    "bench": "Measure how fast this machine simulates.",
}
_WITH_PRESETS = ("run", "compare", "plan")


class _CommandsOnDemand(TyperGroup):
    """The group of all commands, which knows their names and short helps, and loads a command to run it.

    Other commands' modules are never imported: some of them import PyTorch, which takes seconds.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a stand-in with the short help, which is all that `salf --help` needs."""
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the real command, which is imported now."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if command is None else load_command(str(name)), rest

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the whole command line, from which a resuming one is made."""
        ctx.meta[ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command with its errors reported."""
        with mistakes_reported():
            return super().invoke(ctx)


app = typer.Typer(
    name="salf",
    cls=_CommandsOnDemand,
    help="Straggler-aware layer-wise federated learning: a round deadline that keeps slow devices' finished work.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def load_command(name: str) -> click.Command:
    """Import the module of a command and return the command.

    Args:
        name: One of `COMMANDS`.

    Returns:
        The command, with its options, its help and, below that, the names of the presets if it takes one.

    >>> load_command("layers").get_short_help_str(100) == COMMANDS["layers"]
    True
    """
    module = import_module(f"salf.cli.{name}")
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    alone.command(name, epilog=_presets() if name in _WITH_PRESETS else None)(getattr(module, f"{name}_command"))
    return typer.main.get_command(alone)


def _presets() -> str:
    """Return the line below the help of commands that take a preset."""
    from salf.experiment import preset_names  # noqa: PLC0415 - seconds that other commands need not spend

    return f"Presets: {', '.join(preset_names())}."


def _show_version(wanted: bool) -> None:
    """Print the version and exit, if the option was given.

    Raises:
        typer.Exit: The version was printed.
    """
    if wanted:
        typer.echo(f"salf {version('salf')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options before the command's name."""


def main() -> None:
    """Run the command line; a mistake of the user gives one message and exit code 2, never a traceback."""
    app()
