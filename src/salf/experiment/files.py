"""Experiment files and presets, read as nested tables of settings that are not yet validated."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from salf.errors import InvalidSetting
from salf.values import did_you_mean

_PRESETS = files("salf.experiment") / "presets"
_LONGEST_PATH = 200
NOT_REPRODUCIBLE = "This file alone does not reproduce the run:"


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets that are installed with the package.

    >>> "digits" in preset_names()
    True
    """
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in _PRESETS.iterdir()))


def read(path_or_preset: str | Path) -> tuple[dict[str, Any], str]:
    """Read a TOML file, or the preset of that name; return its settings and what to call it in an error.

    Raises:
        InvalidSetting: There is no such file or preset, or it is not TOML.
    """
    text, origin = _read_text(path_or_preset)
    try:
        return tomllib.loads(text), origin
    except ValueError as error:
        raise InvalidSetting(f"{origin} is not valid TOML: {error}; correct it there") from error
    except RecursionError as error:
        raise InvalidSetting(f"{origin} nests values too deeply; remove them, as no setting is nested so") from error


def _read_text(path_or_preset: str | Path) -> tuple[str, str]:
    names = preset_names()
    if isinstance(path_or_preset, str) and path_or_preset in names:
        return (_PRESETS / f"{path_or_preset}.toml").read_text(encoding="utf-8"), f"preset '{path_or_preset}'"
    path = Path(path_or_preset)
    try:
        return path.read_text(encoding="utf-8-sig"), str(path)  # some editors begin a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise InvalidSetting(f"the experiment file {path} is not UTF-8 text; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise InvalidSetting(_unreadable(str(path_or_preset), path, error)) from error


def _unreadable(given: str, path: Path, error: OSError | ValueError) -> str:
    """Say why no file can be read under the name that was given, and which could."""
    names = preset_names()
    name = given if len(given) <= _LONGEST_PATH else f"{given[:_LONGEST_PATH]}…"
    remedy = f"choose one of {', '.join(names)}, or give the path of a .toml file"
    if isinstance(error, IsADirectoryError) and given:
        inside = path / "experiment.toml"
        return f"{name} is a folder, not an experiment file; {f'pass {inside}' if inside.is_file() else remedy}"
    if path.suffix == ".toml" or not isinstance(error, (FileNotFoundError, IsADirectoryError)):
        reason = error.strerror if isinstance(error, OSError) else error
        return f"cannot read the experiment file {name}: {reason}; check the path and its permissions"
    return f"there is no preset '{name}'{did_you_mean(given, names)}; {remedy}"


def reasons_in(toml: str) -> tuple[str, ...]:
    r"""Return why an experiment's file does not reproduce its run, from the comments of `Experiment.to_toml`.

    >>> reasons_in(f"# {NOT_REPRODUCIBLE}\n# - data was given in Python\n\nseed = 1")
    ('data was given in Python',)
    """
    first, _, rest = toml.partition("\n")
    lines = rest.partition("\n\n")[0].splitlines() if first == f"# {NOT_REPRODUCIBLE}" else []
    return tuple(line.removeprefix("# - ") for line in lines)
