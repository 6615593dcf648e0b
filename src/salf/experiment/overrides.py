"""Dotted overrides of settings that are not yet validated."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pydantic_core

from salf.errors import InvalidSetting
from salf.experiment.sections import Section, Table
from salf.experiment.wording import shown


def override(settings: Table, overrides: Mapping[str, object], root: Section) -> list[str]:
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
    section, key = _at(path, root), ".".join(path)
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
        return pydantic_core.to_jsonable_python(value, inf_nan_mode="constants", fallback=_number_or_text)
    except ValueError as error:
        raise InvalidSetting(f"{key} is {shown(value)}, which no file can hold ({error}); choose another") from error


def _number_or_text(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else repr(value)


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
            holder = ".".join(path[:place])
            what = "a value, not a section" if section is None else "an instance given in Python"
            return [f"'{'.'.join(path)}' cannot be set, because {holder} is {what}; set {holder} instead"]
        table = below
    if section is not None and last == section.tag and isinstance(value, str) and value in section.classes:
        for key in table.keys() - set(section.keys(value)):
            del table[key]
    table[last] = value
    return []
