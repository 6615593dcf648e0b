"""What is wrong with settings, in words: which key, which value, and what to write instead."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from salf.experiment.overrides import Section, did_you_mean

# What a value must be, by pydantic's names of what it is not.
_MUST_BE = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
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
        return f"unknown key '{key}'{_belonging(keys, settings, root) or _among(keys[-1], _allowed(problem))}"
    if kind == "missing":
        return f"{key} must be given"
    if kind == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key and not message.startswith(f"{key}.") else message
    if kind == "union_tag_invalid" and section is not None:
        value = value[section.tag]
        key = key if section.brief else f"{key}.{section.tag}"
        return f"{key} = {_shown(value)} must be {_one_of(value, [*section.classes])}"
    return f"{key} = {_shown(value)} must be {_required(problem, key, section)}"


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
        if section is not None and section.tag:
            next(parts, None)
    return keys, section


def _required(problem: ErrorDetails, key: str, section: Section | None) -> str:
    """Say what a value must be."""
    kind, value, details = problem["type"], problem["input"], problem.get("ctx", {})
    if kind in _NO_SECTION:
        return f"a section{_example(key, value, section)}"
    if kind == "literal_error":
        return _one_of(value, _allowed(problem))
    if kind == "too_short":
        return f"a list of at least {details['min_length']}"
    if kind == "string_too_short":
        return "text that is not empty"
    if kind in _MUST_BE:
        return _MUST_BE[kind].format(**details)
    return f"something else ({problem['msg'][:1].lower()}{problem['msg'][1:]})"


def _example(key: str, value: object, section: Section | None) -> str:
    """Show how a section is written of which only the name was given, or a value."""
    if section is None:
        return ""
    choice = value if isinstance(value, str) and value in section.classes else section.default
    setting = f"{section.tag} = '{choice}'" if section.tag else section.keys("")[0]
    return f"; set what is in it, such as {key}.{setting}"


def _belonging(keys: Sequence[str], settings: Mapping[str, Any], root: Section) -> str:
    """Say where a key belongs that has no place here: to another choice, to a name like it, or to another section."""
    *above, last = keys
    section: Section | None = root
    table: Any = settings
    for key in above:
        section = None if section is None else section.inner(key)
        table = table[key]
    if section is None:
        return ""
    choice = section.chosen(table)
    owners = [f"'{name}'" for name in section.classes if last in section.keys(name)]
    if owners:
        return f": it belongs to {'.'.join((*above, section.tag))} = {' or '.join(owners)}, not to '{choice}'"
    known = [name for name in section.keys(choice) if name != section.tag]
    elsewhere = [name for name in root.all_keys() if name.split(".")[-1] == last]
    if elsewhere and not (above and did_you_mean(last, known)):
        return f" (did you mean '{elsewhere[0]}'?)"
    return _among(last, known, ".".join((*above, "")))


def _among(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Name the known name that was probably meant, or else all of them."""
    return did_you_mean(name, known, prefix) or (f" (known are {', '.join(known)})" if known else "")


def _one_of(value: object, allowed: Sequence[str]) -> str:
    hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
    return f"one of {', '.join(allowed)}{hint}"


def _allowed(problem: ErrorDetails) -> list[str]:
    """Return the names that pydantic says are allowed."""
    return re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected", "")))


def _shown(value: object) -> str:
    """Write a value as a file would, a table in short."""
    if isinstance(value, Mapping):
        return "{…}" if value else "{}"
    return str(value).lower() if isinstance(value, bool) else repr(value)
