"""Error messages about settings: which key has which wrong value, and what to write instead."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from salf.experiment.sections import Section
from salf.values import allowed_by, clause, did_you_mean, one_of, written

_NO_SECTION = ("dict_type", "dataclass_type", "model_attributes_type")
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def describe(problem: ErrorDetails, settings: Mapping[str, Any], root: Section) -> str:
    """Return one clause about a problem, which names the key and what to write instead.

    Args:
        problem: What pydantic found.
        settings: The complete settings in which it was found.
        root: What may stand in them.
    """
    keys, section = _locate(problem["loc"], root)
    key, kind, value = ".".join(keys), problem["type"], problem["input"]
    if kind in _UNKNOWN or problem["loc"][-1:] == ("[key]",):
        return _misplaced(keys, settings, root) or _unknown(key, keys[-1], allowed_by(problem))
    if kind == "union_tag_invalid" and section is not None:
        return _unknown_choice(key, value[section.tag], section)
    if kind in _NO_SECTION:
        return f"{key} is {written(value)}, not a section{_example(key, value, section)}"
    return clause(key, problem)


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


def _unknown_choice(key: str, value: object, section: Section) -> str:
    """Say what can be chosen in a section, or how a class that is named by its module becomes a choice."""
    key = key if section.brief else f"{key}.{section.tag}"
    if section.registry is not None and isinstance(value, str) and ":" in value:
        what = section.registry.what
        return f"{key} is {written(value)}, a {what} that is not registered; register its class, or pass it in Python"
    return f"{key} is {written(value)}; choose {one_of(value, [*section.classes])}"


def _example(key: str, value: object, section: Section | None) -> str:
    """Show how a section is written when only the name, or a value, was given for it."""
    if section is None:
        return "; write it as a table"
    if section.tag and isinstance(value, str) and value not in section.classes:
        return f"; set {key}.{section.tag} to {one_of(value, [*section.classes])}"
    choice = value if isinstance(value, str) and value in section.classes else section.default
    setting = f"{section.tag} = '{choice}'" if section.tag else section.keys("")[0]
    return f"; set what is in it, such as {key}.{setting}"


def _misplaced(keys: Sequence[str], settings: Mapping[str, Any], root: Section) -> str:
    """Say where an unknown key belongs: to another choice, to a name like it, or to another section."""
    *above, last = keys
    section = root.at(above)
    if section is None:
        return ""
    table: Any = settings
    for key in above:
        table = table[key]
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
