"""Settings before they are validated: the nested tables of an experiment file, read, overridden and described."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pydantic_core
from pydantic.fields import FieldInfo

from salf.errors import InvalidSetting
from salf.values import Choice, Registry

Table = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """What may stand in a table of settings.

    The table describes an instance of one of `classes`, which the value of its key `tag` chooses; a table without that
    key gets `default`. A section that knows one class only has no tag, and the class stands under the empty name. Where
    a section is `brief`, the choice alone may stand for the whole table. `registry` is what `classes` are looked up in,
    if users may add to them.
    """

    classes: Mapping[str, Any]
    tag: str = ""
    default: str = ""
    brief: bool = False
    registry: Registry[Any] | None = None

    def chosen(self, table: Mapping[str, object]) -> str:
        """Return the name of the class that a table chooses; the default for a choice that there is not."""
        choice = table.get(self.tag, self.default)
        return choice if isinstance(choice, str) and choice in self.classes else self.default

    def is_value(self, value: object) -> bool:
        """Say whether a value was given in Python that no table of this section describes."""
        registry = self.registry
        return registry is not None and isinstance(value, registry.bases) and not registry.is_table(value)

    def keys(self, choice: str) -> tuple[str, ...]:
        """Return the keys that a table with this choice may have."""
        return tuple(_fields(self.classes[choice]))

    def inner(self, key: object, choice: str | None = None) -> "Section | None":
        """Return the section under a key of the choice, else of any; None if the key holds a value."""
        first = () if choice is None else (self.classes[choice],)
        found = (_fields(cls)[key] for cls in chain(first, self.classes.values()) if key in _fields(cls))
        field = next(found, None)
        return None if field is None else _section_of(field)

    def all_keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the dotted names of everything that may be set."""
        for key in dict.fromkeys(key for choice in self.classes for key in self.keys(choice)):
            yield f"{prefix}{key}"
            inner = self.inner(key)
            if inner is not None:
                yield from inner.all_keys(f"{prefix}{key}.")


def _fields(cls: Any) -> dict[Any, FieldInfo]:  # noqa: ANN401 - any validated dataclass
    fields: dict[Any, FieldInfo] = cls.__pydantic_fields__
    return fields


def _section_of(field: FieldInfo) -> Section | None:
    for entry in field.metadata:
        if isinstance(entry, Choice):
            registry = entry.registry
            default = getattr(field.get_default(call_default_factory=True), registry.tag)
            return Section(registry, registry.tag, default, entry.brief, registry)
    tag = field.discriminator
    if isinstance(tag, str):
        classes = {name: cls for cls in get_args(field.annotation) for name in get_args(_fields(cls)[tag].annotation)}
        default = getattr(field.get_default(call_default_factory=True), tag)
        return Section(classes, tag, default)
    return Section({"": field.annotation}) if is_dataclass(field.annotation) else None


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets that are installed with the package."""
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in _presets().iterdir()))


def _presets() -> Traversable:
    return files("salf.experiment") / "presets"


def read(path_or_preset: str | Path) -> tuple[Table, str]:
    """Read a TOML file, or the preset of that name; return its settings and what to call it in an error."""
    text, origin = _read_text(path_or_preset)
    try:
        return tomllib.loads(text), origin
    except ValueError as error:
        raise InvalidSetting(f"{origin} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise InvalidSetting(f"{origin} nests values more deeply than can be read; no setting is nested so") from error


def _read_text(path_or_preset: str | Path) -> tuple[str, str]:
    names = preset_names()
    if isinstance(path_or_preset, str) and path_or_preset in names:
        return (_presets() / f"{path_or_preset}.toml").read_text(encoding="utf-8"), f"preset '{path_or_preset}'"
    path = Path(path_or_preset)
    try:
        return path.read_text(encoding="utf-8-sig"), str(path)  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise InvalidSetting(f"cannot read the experiment file {path}: it is not UTF-8 text") from error
    except (OSError, ValueError) as error:
        raise InvalidSetting(_unreadable(str(path_or_preset), path, error)) from error


def _unreadable(given: str, path: Path, error: OSError | ValueError) -> str:
    """Say why nothing can be read under the name that was given, and what could."""
    names = preset_names()
    known = f"known are {', '.join(names)}, or give the path of a .toml file"
    if isinstance(error, IsADirectoryError) and given:
        inside = path / "experiment.toml"
        remedy = f"did you mean {inside}?" if inside.is_file() else known.replace("known are", "the presets are")
        return f"{path} is a folder, not an experiment file; {remedy}"
    if path.suffix == ".toml" or not isinstance(error, (FileNotFoundError, IsADirectoryError)):
        reason = error.strerror if isinstance(error, OSError) else error
        return f"cannot read the experiment file {path}: {reason}; mend that or name another file"
    return f"there is no preset '{given}'{did_you_mean(given, names)}; {known}"


def override(settings: Table, overrides: Mapping[str, object], root: Section) -> list[str]:
    """Set dotted keys in place; return what is wrong with the keys.

    A key that chooses, such as `method.name`, keeps only those settings of the file that the new choice knows. It comes
    before all other keys, so that nothing which is asked for in the same breath gets lost.
    """
    problems: list[str] = []
    leaves: list[tuple[tuple[str, ...], object]] = []
    for key, value in overrides.items():
        path = tuple(key.split("."))
        if not all(path):
            problems.append(f"'{key}' is no setting; write its name with dots, such as data.clients")
        else:
            leaves += _leaves(path, value, root)
    for path, value in sorted(leaves, key=lambda leaf: _rank(leaf[0], root)):
        problems += _set(settings, path, value, root)
    return problems


def _plain(key: str, value: object) -> object:
    """Turn a value into what a file could hold."""
    try:
        return pydantic_core.to_jsonable_python(value, inf_nan_mode="constants", fallback=_number_or_text)
    except ValueError as error:
        raise InvalidSetting(f"{key} cannot be set to {value!r}: {error}") from error


def _number_or_text(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else repr(value)


def _leaves(path: tuple[str, ...], value: object, root: Section) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield single settings: a table given for a section sets what is in it, and no more."""
    section = _at(path, root)
    if section is not None and section.is_value(value):
        yield path, value
        return
    plain = value if isinstance(value, Mapping) and section is not None else _plain(".".join(path), value)
    if section is not None and isinstance(plain, Mapping):
        for key, inner in plain.items():
            yield from _leaves((*path, str(key)), inner, root)
    elif section is not None and section.brief and isinstance(plain, str):
        yield (*path, section.tag), plain
    else:
        yield path, plain


def _rank(path: Sequence[str], root: Section) -> float:
    """Sort keys that choose before the others, and the outer ones among them first."""
    section = _at(path[:-1], root)
    return len(path) if section is not None and path[-1] == section.tag else np.inf


def _at(path: Sequence[str], root: Section) -> Section | None:
    section: Section | None = root
    for key in path:
        section = None if section is None else section.inner(key)
    return section


def _set(settings: Table, path: Sequence[str], value: object, root: Section) -> list[str]:
    """Set one key; return what is wrong with it."""
    *above, last = path
    section: Section | None = root
    table = settings
    for place, key in enumerate(above, start=1):
        section = None if section is None else section.inner(key)
        below = table.setdefault(key, {})
        if isinstance(below, str) and section is not None and section.brief:
            below = table[key] = {section.tag: below}
        if not isinstance(below, dict):
            return [f"'{'.'.join(path)}' cannot be set: {'.'.join(path[:place])} is a value, not a section"]
        table = below
    if section is not None and last == section.tag and isinstance(value, str) and value in section.classes:
        for key in table.keys() - set(section.keys(value)):
            del table[key]
    table[last] = value
    return []


def complete(table: Mapping[str, object], section: Section, given: dict[str, object]) -> Table:
    """Return the settings with every section's choice filled in, and written in full.

    Args:
        table: Settings nested as in a file; values given in Python may stand for whole sections.
        section: What may stand in the table.
        given: Receives those values that no table describes, each under the name that stands in for it.
    """
    filled: Table = dict(table)
    if section.tag:
        filled.setdefault(section.tag, section.default)
    for key, value in table.items():
        inner = section.inner(key, section.chosen(table))
        if inner is None:
            continue
        if isinstance(value, str) and inner.brief:
            filled[key] = {inner.tag: value}
        elif isinstance(value, Mapping):
            filled[key] = complete(value, inner, given)
        elif inner.is_value(value):
            stand_in = f"given:{len(given)}"
            filled[key], given[stand_in] = {inner.tag: stand_in}, value
    return filled


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Return a question to append to an error, if one of the known names is close; else nothing.

    >>> did_you_mean("salff", ["fedavg", "salf"]), did_you_mean("x", ["fedavg"])
    (" (did you mean 'salf'?)", '')
    """
    close = get_close_matches(name, known, n=1)
    return f" (did you mean '{prefix}{close[0]}'?)" if close else ""
