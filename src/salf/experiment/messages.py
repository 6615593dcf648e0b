"""Error messages about settings: which key has which wrong value, and what to write instead."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from salf.errors import InvalidSetting
from salf.experiment.sections import Section
from salf.experiment.wording import did_you_mean, one_of, shown

# What a value must be, by pydantic's names of errors.
_NEEDED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "finite_number": "a finite number",
    "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number less than {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "text that is not empty",
}
_NO_SECTION = ("dict_type", "dataclass_type", "model_attributes_type")
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def describe(error: ValidationError, settings: Mapping[str, Any], root: Section) -> list[str]:
    """Return one clause for each problem that was found in `settings`, which are complete."""
    return [_describe(problem, settings, root) for problem in error.errors()]


def _describe(problem: ErrorDetails, settings: Mapping[str, Any], root: Section) -> str:
    keys, section = _locate(problem["loc"], root)
    key, kind, value = ".".join(keys), problem["type"], problem["input"]
    if kind in _UNKNOWN or problem["loc"][-1:] == ("[key]",):
        return _misplaced(keys, settings, root) or _unknown(key, keys[-1], _allowed(problem))
    if kind == "missing":
        return f"{key} is missing; set it"
    if kind == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        own = isinstance(problem.get("ctx", {}).get("error"), InvalidSetting)  # which names the key by itself
        return message if own or not key else f"{key}: {message}"
    if kind == "union_tag_invalid" and section is not None:
        return _unknown_choice(key, value[section.tag], section)
    if kind in _NO_SECTION:
        return f"{key} is {shown(value)}, not a section{_example(key, value, section)}"
    return f"{key} is {shown(value)}; choose {_needed(problem)}"


def _locate(loc: Sequence[int | str], root: Section) -> tuple[list[str], Section | None]:
    """Return the keys that lead to a problem, without the choices that pydantic puts between, and the section there."""
    keys: list[str] = []
    section: Section | None = root
    parts = iter(loc)
    for part in parts:
        if part == "[key]":
            continue
        if isinstance(part, int):
            keys[-1] += f"[{part}]"
            continue
        keys.append(part)
        section = None if section is None else section.inner(part)
        if section is not None and section.tag and section.registry is None:
            next(parts, None)
    return keys, section


def _needed(problem: ErrorDetails) -> str:
    """Say what a value must be."""
    kind, value = problem["type"], problem["input"]
    if kind == "literal_error":
        return one_of(value, _allowed(problem))
    if kind in _NEEDED:
        return _NEEDED[kind].format(**problem.get("ctx", {}))
    reason = problem["msg"].removeprefix("Input should be ")
    return reason if reason != problem["msg"] else f"another value ({reason[:1].lower()}{reason[1:]})"


def _unknown_choice(key: str, value: object, section: Section) -> str:
    """Say what can be chosen in a section, or how a class that is named by its module becomes a choice."""
    key = key if section.brief else f"{key}.{section.tag}"
    if section.registry is not None and isinstance(value, str) and ":" in value:
        what = section.registry.what
        return f"{key} is {shown(value)}, a {what} that is not registered; register its class, or pass it in Python"
    return f"{key} is {shown(value)}; choose {one_of(value, [*section.classes])}"


def _example(key: str, value: object, section: Section | None) -> str:
    """Show how a section is written when only the name, or a value, was given for it."""
    if section is None:
        return "; write it as a table"
    choice = value if isinstance(value, str) and value in section.classes else section.default
    setting = f"{section.tag} = '{choice}'" if section.tag else section.keys("")[0]
    return f"; set what is in it, such as {key}.{setting}"


def _misplaced(keys: Sequence[str], settings: Mapping[str, Any], root: Section) -> str:
    """Say where an unknown key belongs: to another choice, to a name like it, or to another section."""
    *above, last = keys
    section: Section | None = root
    table: Any = settings
    for key in above:
        section = None if section is None else section.inner(key)
        table = table[key]
    if section is None:
        return ""
    key, tag, choice = ".".join(keys), ".".join((*above, section.tag)), section.chosen(table)
    owners = [f"'{name}'" for name in section.classes if last in section.keys(name)]
    if owners:
        return f"unknown key '{key}': it belongs to {tag} = {' or '.join(owners)}, not to '{choice}'; remove it"
    known = [name for name in section.keys(choice) if name != section.tag]
    elsewhere = [name for name in root.all_keys() if name.split(".")[-1] == last]
    if elsewhere and not (above and did_you_mean(last, known)):
        return f"unknown key '{key}' (did you mean '{elsewhere[0]}'?); rename or remove it"
    return _unknown(key, last, known, ".".join((*above, "")))


def _unknown(key: str, last: str, known: Sequence[str], prefix: str = "") -> str:
    """Name the known key that was probably meant, or else all of them."""
    hint = did_you_mean(last, known, prefix) or (f" (known are {', '.join(known)})" if known else "")
    return f"unknown key '{key}'{hint}; rename or remove it"


def _allowed(problem: ErrorDetails) -> list[str]:
    """Return the names that pydantic says are allowed."""
    return re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected", "")))
