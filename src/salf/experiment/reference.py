"""The reference of all settings: what an experiment file may hold, read off the classes that validate it."""

import inspect
import json
from abc import ABC
from collections.abc import Collection, Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from salf.experiment.experiment import Experiment
from salf.experiment.sections import Section

_INTRODUCTION = """# Settings

Every key of an experiment file, with what it may be and what it is when it is left out. A file holds only what differs
from these defaults; `--set KEY=VALUE` and `Experiment.load(..., **{"KEY": VALUE})` take the same dotted names. A key
that does not exist and a value out of range are errors that name the key. [own.md](own.md) has a file to start from.

The texts are those of the classes behind the keys, in Python's notation: `None` is a key that is left out, `False` is
`false` in a file, `(16, 16)` is `[16, 16]`. `salf.reference` makes this page of them.
"""

_TYPES = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "string": "text"}

# What a JSON schema says of a value's range, in words.
_RANGES = {
    "minimum": "at least {:g}",
    "exclusiveMinimum": "greater than {:g}",
    "maximum": "at most {:g}",
    "exclusiveMaximum": "less than {:g}",
    "minItems": "at least {:g} of them",
    "minLength": "not empty",
}


def settings_reference() -> str:
    """Return the page `docs/settings.md`: for each section and each choice its text, keys, ranges and defaults.

    >>> page = settings_reference()
    >>> [line for line in page.splitlines() if "client.lr" in line]
    ['| `client.lr` | number | greater than 0 and at most 1e+30 | `0.1` |']
    """
    return "\n".join([_INTRODUCTION, *_describe("", "", Section({"": Experiment}))])


def _describe(path: str, prefix: str, section: Section) -> Iterator[str]:
    """Yield the blocks about a section, whose keys are written after `prefix`, and those about the sections in it."""
    yield f"## {_code(path) if path else 'The experiment'}\n"
    classes = list(dict.fromkeys(section.classes.values()))
    shared = _shared(classes)
    if section.tag:
        yield from _describe_classes(prefix, shared, {section.tag})
        yield _choice(path, section)
        known = {section.tag, *(key for cls in shared for key in _fields(cls))}
        for cls in classes:
            names = [_quoted(name) for name, chosen in section.classes.items() if chosen is cls]
            yield f"### {_code(f'{prefix}{section.tag}')} = {', '.join(names)}\n"
            yield from _describe_classes(prefix, [cls], known)
    else:
        yield from _describe_classes(prefix, [*classes, *shared], set())
    for cls in classes:
        for key, field in _fields(cls).items():
            inner = _section_of(cls, key)
            if inner is not None:
                below = f"{prefix}{key}"
                yield from _describe(below, f"{below}.NAME." if _is_map(field) else f"{below}.", inner)


def _choice(path: str, section: Section) -> str:
    """Say which key chooses, and what it chooses by default."""
    text = f"{_code(f'{path}.{section.tag}')} is one of the following, by default {_quoted(section.default)}."
    if section.brief:
        text += f"\nWhere it is the only key, {_code(f'{path} = {json.dumps(section.default)}')} is enough."
    return f"{text}\n"


def _describe_classes(prefix: str, classes: Sequence[Any], known: Collection[str]) -> Iterator[str]:
    """Yield the classes' texts, and one table of their keys but for those that are known."""
    rows: dict[str, str] = {}
    for cls in classes:
        yield from _paragraphs(cls)
        schemas = TypeAdapter(cls).json_schema().get("properties", {})
        for key in _fields(cls).keys() - known - rows.keys():
            if _section_of(cls, key) is None:
                rows[key] = f"| {_code(prefix + key)} | {_row(cls, key, schemas[key])} |"
    if rows:
        ordered = [rows[key] for key in _fields(classes[0]) if key in rows]
        yield "\n".join(["| key | value | range | default |", "|---|---|---|---|", *ordered, ""])


def _paragraphs(cls: type) -> Iterator[str]:
    """Yield the paragraphs of a class's docstring, without its doctests."""
    for paragraph in inspect.cleandoc(cls.__doc__ or "").split("\n\n"):
        if not paragraph.startswith(">>>"):
            yield f"{paragraph}\n"


def _row(cls: Any, key: str, schema: dict[str, Any]) -> str:  # noqa: ANN401 - any validated dataclass
    field = _fields(cls)[key]
    given = schema["anyOf"][0] if "anyOf" in schema else schema  # the rest is None: the key may be left out
    values = _names(cls, key) or _values(given)
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    without = "must be given" if field.is_required() else "none" if default is None else _quoted(default)
    return f"{values} | {_range(given)} | {without}"


def _values(schema: dict[str, Any]) -> str:
    """Say what a value is: its type, or the choices."""
    if "enum" in schema or "const" in schema:
        return ", ".join(map(_quoted, schema.get("enum", [schema.get("const")])))
    if schema["type"] == "array":
        return f"list of {_values(schema['items'])}s"
    return "path" if schema.get("format") == "path" else _TYPES[schema["type"]]


def _names(cls: Any, key: str) -> str:  # noqa: ANN401 - any validated dataclass
    """Return the names that text is limited to by a validator, which no type knows: its error lists them."""
    if _fields(cls)[key].annotation is not str:
        return ""
    try:
        TypeAdapter(cls).validate_python({key: ""})
    except ValidationError as error:
        details = [problem.get("ctx", {}) for problem in error.errors() if problem["loc"] == (key,)]
        return ", ".join(
            _quoted(name.strip("'")) for found in details for name in found.get("expected", "").split(", ") if name
        )
    return ""


def _range(schema: dict[str, Any]) -> str:
    limits = [text.format(schema[limit]) for limit, text in _RANGES.items() if limit in schema]
    each = _range(schema["items"]) if "items" in schema else ""
    return " and ".join([*limits, *([f"each {each}"] if each else [])])


def _shared(classes: Sequence[type]) -> list[Any]:
    """Return what all the classes derive from, nearest first."""
    bases = [base for base in classes[0].__mro__[1:] if base not in (ABC, object)]
    return [base for base in bases if all(issubclass(cls, base) for cls in classes)]


def _fields(cls: Any) -> dict[str, FieldInfo]:  # noqa: ANN401 - any validated dataclass
    fields: dict[str, FieldInfo] = cls.__pydantic_fields__
    return fields


def _section_of(cls: Any, key: str) -> Section | None:  # noqa: ANN401 - any validated dataclass
    """Return the section under a key, also where there is one for each of several names."""
    field = _fields(cls)[key]
    return Section({"": get_args(field.annotation)[1]}) if _is_map(field) else Section({"": cls}).inner(key)


def _is_map(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is dict


def _quoted(value: object) -> str:
    return _code(json.dumps(value))


def _code(text: str) -> str:
    return f"`{text}`"
