"""The tables of an experiment file: what may stand in each, overrides by dotted names, and values from Python.

All is read off the dataclasses that validate the tables.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import chain
from typing import Any, get_args

import numpy as np
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from salf.errors import InvalidSetting
from salf.registry import Choice, Registry
from salf.values import written


@dataclass(frozen=True)
class Section:
    """What may stand in a table of settings, which describes an instance of one of several classes.

    Attributes:
        classes: The classes by name. A section that knows one class only has it under the empty name.
        tag: The key whose value chooses the class; empty if there is one class.
        default: The class of a table without that key.
        brief: Whether the choice alone may stand for the whole table.
        registry: What `classes` are, if users may add to them.
    """

    classes: Mapping[str, Any]
    tag: str = ""
    default: str = ""
    brief: bool = False
    registry: Registry[Any] | None = None

    def chosen(self, table: Mapping[str, object]) -> str:
        """Return the name of the class that a table chooses; the default for an unknown name."""
        choice = table.get(self.tag, self.default)
        return choice if isinstance(choice, str) and choice in self.classes else self.default

    def keys(self, choice: str) -> tuple[str, ...]:
        """Return the keys that a table with this choice may have."""
        return tuple(fields_of(self.classes[choice]))

    def inner(self, key: object, choice: str | None = None) -> "Section | None":
        """Return the section under a key of the choice, or else of any class; None if the key holds a value."""
        first = () if choice is None else (self.classes[choice],)
        found = (fields_of(cls)[key] for cls in chain(first, self.classes.values()) if key in fields_of(cls))
        field = next(found, None)
        return None if field is None else section_of(field)

    def at(self, path: Sequence[str]) -> "Section | None":
        """Return the section under several keys, one in another; None if there is none."""
        section: Section | None = self
        for key in path:
            section = None if section is None else section.inner(key)
        return section

    def all_keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the dotted names of everything that may be set."""
        for key in dict.fromkeys(key for choice in self.classes for key in self.keys(choice)):
            yield f"{prefix}{key}"
            inner = self.inner(key)
            if inner is not None:
                yield from inner.all_keys(f"{prefix}{key}.")

    def keeps(self, key: str, value: object) -> bool:
        """Say whether a value given in Python for the section must be kept as it is, since no table describes it.

        Raises:
            InvalidSetting: The value is of a class that the section does not know.
        """
        if not is_dataclass(value) or isinstance(value, type):
            return False
        registry = self.registry
        if type(value) in self.classes.values() if registry is None else isinstance(value, registry.bases):
            return registry is not None and not registry.is_table(value)
        bases = self.classes.values() if registry is None else registry.bases
        known = " or ".join(base.__name__ for base in bases)
        raise InvalidSetting(f"{key} is an instance of {type(value).__name__}; pass an instance of {known}")


def fields_of(cls: object) -> dict[Any, FieldInfo]:
    """Return the fields of a validated dataclass."""
    fields: dict[Any, FieldInfo] = getattr(cls, "__pydantic_fields__", {})
    return fields


def section_of(field: FieldInfo) -> Section | None:
    """Return the section that a field holds, or None if it holds a value."""
    for entry in field.metadata:
        if isinstance(entry, Choice):
            registry = entry.registry
            default = getattr(field.get_default(call_default_factory=True), registry.tag, "")
            return Section(registry, registry.tag, default, entry.brief, registry)
    tag = field.discriminator
    if isinstance(tag, str):
        classes = {name: cls for cls in get_args(field.annotation) for name in get_args(fields_of(cls)[tag].annotation)}
        return Section(classes, tag, getattr(field.get_default(call_default_factory=True), tag))
    return Section({"": field.annotation}) if is_dataclass(field.annotation) else None


def complete(
    table: Mapping[str, object], section: Section, given: dict[str, object], prefix: str = ""
) -> dict[str, Any]:
    """Return the settings with every section's choice filled in, and written in full.

    Args:
        table: Settings nested as in a file; values given in Python may stand for whole sections.
        section: What may stand in the table.
        given: Receives those values that no table describes, each under the name that stands in for it.
        prefix: What stands before the keys in error messages.
    """
    filled = dict[str, Any](table)
    if section.tag:
        filled.setdefault(section.tag, section.default)
    for key, value in table.items():
        inner = section.inner(key, section.chosen(table))
        if inner is None:
            continue
        if isinstance(value, str) and inner.brief:
            filled[key] = {inner.tag: value}
        elif isinstance(value, Mapping):
            filled[key] = complete(value, inner, given, f"{prefix}{key}.")
        elif inner.keeps(f"{prefix}{key}", value):
            stand_in = f"given:{len(given)}"
            filled[key], given[stand_in] = {inner.tag: stand_in}, value
    return filled


def override(settings: dict[str, Any], overrides: Mapping[str, object], root: Section) -> list[str]:
    """Set dotted keys in place; return what is wrong with the keys.

    A key that chooses, such as `method.name`, keeps only those settings of the file that the new choice knows. It is
    applied before all other keys, so that no other override of the same call is lost.

    Args:
        settings: The tables to change.
        overrides: New values by dotted keys; a table sets what is in it, and no more.
        root: What may stand in `settings`.
    """
    problems: list[str] = []
    leaves: list[tuple[tuple[str, ...], object]] = []
    for key, value in overrides.items():
        path = tuple(key.split("."))
        if not all(path):
            problems.append(f"'{key}' is not the name of a setting; write it with dots, such as data.clients")
        else:
            leaves += _leaves(path, value, root)
    for path, value in sorted(leaves, key=lambda leaf: _rank(leaf[0], root)):
        problems += _set(settings, path, value, root)
    return problems


def _leaves(path: tuple[str, ...], value: object, root: Section) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield single settings, as a file could hold them, and values that only Python can hold as they are."""
    section, key = root.at(path), ".".join(path)
    if section is not None and section.keeps(key, value):
        yield path, value
        return
    plain = value if section is not None and isinstance(value, Mapping) else _plain(key, value)
    if section is not None and isinstance(plain, Mapping):
        for name, inner in plain.items():
            yield from _leaves((*path, str(name)), inner, root)
    elif section is not None and section.brief and isinstance(plain, str):
        yield (*path, section.tag), plain
    else:
        yield path, plain


def _plain(key: str, value: object) -> object:
    """Turn a value into what a file could hold."""
    try:
        return to_jsonable_python(value, inf_nan_mode="constants", fallback=_number_or_text)
    except ValueError as error:
        raise InvalidSetting(f"{key} is {written(value)}, which no file can hold ({error}); choose another") from error


def _number_or_text(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else repr(value)


def _rank(path: Sequence[str], root: Section) -> float:
    """Sort keys that choose before the others, and the outer ones among them first."""
    section = root.at(path[:-1])
    return len(path) if section is not None and path[-1] == section.tag else np.inf


def _set(settings: dict[str, Any], path: Sequence[str], value: object, root: Section) -> list[str]:
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
            holder = ".".join(path[:place])
            what = "a value, not a section" if section is None else "an instance given in Python"
            return [f"'{'.'.join(path)}' cannot be set, because {holder} is {what}; set {holder} instead"]
        table = below
    if section is not None and last == section.tag and isinstance(value, str) and value in section.classes:
        for key in table.keys() - set(section.keys(value)):
            del table[key]
    table[last] = value
    return []


def origins(settings: object, prefix: str = "") -> Iterator[str]:
    """Yield a phrase for each value in validated settings that another process cannot read from a file."""
    if not is_dataclass(settings):
        return
    known = getattr(settings, "__pydantic_fields__", {})
    for field in fields(settings):
        value, key = getattr(settings, field.name), f"{prefix}{field.name}"
        inner = tuple(origins(value, f"{key}."))
        for entry in known[field.name].metadata if field.name in known else ():
            if isinstance(entry, Choice):
                origin = entry.registry.origin(value)
                if origin and not (inner and entry.registry.is_registered(value)):
                    yield f"{key} {origin}"
        yield from inner
