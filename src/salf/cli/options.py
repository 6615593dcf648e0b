"""Options of several commands, and how their values are read."""

import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.models import OptionInfo

from salf.errors import InvalidSetting


def option(metavar: str, help_text: str, *names: str, least: float | None = None) -> OptionInfo:
    """Return an option with a value.

    Args:
        metavar: What stands for the value in the help.
        help_text: The help.
        names: Such as `--set`; by default the parameter's name.
        least: The smallest number that is allowed.
    """
    made: OptionInfo = typer.Option(*names, metavar=metavar, help=help_text, min=least)
    return made


def path_option(metavar: str, help_text: str) -> OptionInfo:
    """Return an option that takes the path of a file or folder.

    Args:
        metavar: What stands for the path in the help.
        help_text: The help.
    """
    option: OptionInfo = typer.Option(parser=given_path, metavar=metavar, help=help_text)
    return option


def given_path(text: str) -> Path:
    """Read the path of a file or folder; refuse an empty one, which an unset variable leaves.

    Raises:
        typer.BadParameter: The path is empty or blank.
    """
    if not text.strip():
        raise typer.BadParameter("it is empty; name a file or folder, or leave the option out")
    return Path(text)


# The commands' own texts explain arguments: not every pair of typer and click shows an argument's help.
Named = Annotated[str, typer.Argument(metavar="[PRESET|FILE.toml]", show_default=False)]
Settings = Annotated[
    list[str] | None, option("KEY=VALUE", "Override a setting, such as data.clients=100; may be repeated.", "--set")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead, and show no progress.")]


def parse_settings(pairs: Sequence[str] | None) -> dict[str, object]:
    """Read KEY=VALUE pairs; a value is TOML, or else text.

    Args:
        pairs: The values of all `--set` options; None without one.

    Returns:
        The settings by their dotted names, the last one of each name.

    Raises:
        InvalidSetting: A pair has no key, or no "=".

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


def names_in(text: str) -> list[str]:
    """Read names that are separated by commas.

    >>> names_in("body, head"), names_in("")
    (['body', 'head'], [])
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def positive_numbers(name: str, text: str, example: str) -> list[float]:
    """Read positive numbers that are separated by commas.

    Args:
        name: The option's name, for the error.
        text: The option's value; may be empty.
        example: Shown in the error.

    Raises:
        InvalidSetting: Something else is among them.

    >>> positive_numbers("--deadlines", "0.5, 2", "1,2")
    [0.5, 2.0]
    """
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [0.0]
    if not all(0 < number < math.inf for number in numbers):
        raise InvalidSetting(f"{name} is '{text}'; give positive numbers separated by commas, such as {example}")
    return numbers
