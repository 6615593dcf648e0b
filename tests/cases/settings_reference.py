"""The reference of all settings, docs/settings.md, read off the classes that validate an experiment file.

python tests/cases/settings_reference.py > docs/settings.md
"""

import inspect
import json
import re
import sys
from abc import ABC
from collections.abc import Collection, Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from salf.experiment.experiment import Experiment
from salf.experiment.sections import Section, fields_of
from salf.values import allowed_by

_INTRODUCTION = """# Settings

This page lists every key of an experiment file, with its values, range and default. A file holds only what differs from
the defaults. `--set KEY=VALUE` and `Experiment.load(..., **{"KEY": VALUE})` take the same dotted names. An unknown key
or a value out of range is an error that names the key. [own.md](own.md) has a file to start from, and shows how to add
methods, rules and device models.

The texts are the docstrings of the classes behind the keys, in Python's notation: `None` is a key that is left out,
`False` is `false` in a file, `(16, 16)` is `[16, 16]`.
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
    return "\n".join([_INTRODUCTION, *_describe("", "", Section({"": Experiment}), set())])


def _describe(path: str, prefix: str, section: Section, done: set[str]) -> Iterator[str]:
    """Yield the blocks about a section and about the sections in it.

    Args:
        path: The section's key.
        prefix: What stands before the keys in the section.
        section: What may stand in it.
        done: The keys of the sections that are described; several methods have a section for their rule.
    """
    done.add(path)
    yield f"## {_code(path) if path else 'The experiment'}\n"
    names = section.classes if section.registry is None else section.registry.built_in
    classes = list(dict.fromkeys(section.classes[name] for name in names))
    shared = _shared(classes)
    if section.tag:
        yield from _describe_classes(prefix, shared, {section.tag}, brief=True)
        yield _choice(path, section)
        known = {section.tag, *(key for cls in shared for key in fields_of(cls))}
        for cls in classes:
            chosen = ", ".join(_quoted(name) for name in names if section.classes[name] is cls)
            yield f"### {_code(f'{prefix}{section.tag}')} = {chosen}\n"
            yield from _describe_classes(prefix, [cls], known)
    else:
        yield from _describe_classes(prefix, [*classes, *shared], set())
    for cls in classes:
        for key, field in fields_of(cls).items():
            inner, below = _section_of(cls, key), f"{prefix}{key}"
            if inner is not None and below not in done:
                yield from _describe(below, f"{below}.NAME." if _is_map(field) else f"{below}.", inner, done)


def _choice(path: str, section: Section) -> str:
    """Say which key chooses a class, and which class is the default."""
    text = f"{_code(f'{path}.{section.tag}')} is one of the following, by default {_quoted(section.default)}."
    if section.brief:
        text += f"\nWhere it is the only key, {_code(f'{path} = {json.dumps(section.default)}')} is enough."
    return f"{text}\n"


def _describe_classes(
    prefix: str, classes: Sequence[Any], known: Collection[str], *, brief: bool = False
) -> Iterator[str]:
    """Yield the classes' texts, and one table of their keys except the known ones.

    With `brief`, only the first paragraph of each text: the rest of a base class is for those who derive from it.
    """
    rows: dict[str, str] = {}
    for cls in classes:
        paragraphs = list(_paragraphs(cls))
        yield from paragraphs[: 1 if brief else None]
        yield from _attributes(cls)
        schemas = TypeAdapter(cls).json_schema().get("properties", {})
        for key in fields_of(cls).keys() - known - rows.keys():
            if _section_of(cls, key) is None:
                rows[key] = f"| {_code(prefix + key)} | {_row(cls, key, schemas[key])} |"
    if rows:
        ordered = [rows[key] for key in fields_of(classes[0]) if key in rows]
        yield "\n".join(["| key | value | range | default |", "|---|---|---|---|", *ordered, ""])


def _paragraphs(cls: type) -> Iterator[str]:
    """Yield the paragraphs of a class's docstring, without its examples and their headings, and without lists."""
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    for paragraph, following in zip(paragraphs, [*paragraphs[1:], ""], strict=True):
        introduces = paragraph.endswith(":") and following.startswith(">>>")
        if not (introduces or paragraph.startswith((">>>", "..."))) and not _LIST.match(paragraph):
            yield f"{paragraph}\n"


_LIST = re.compile(r"(Args|Attributes|Raises|Returns):\n")
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n     .*)*)", re.MULTILINE)


def _attributes(cls: type) -> Iterator[str]:
    """Yield the list of the fields that a class's docstring describes under `Attributes:` or `Args:`."""
    entries = []
    for paragraph in inspect.cleandoc(cls.__doc__ or "").split("\n\n"):
        if paragraph.startswith(("Attributes:\n", "Args:\n")):
            found = ((name, " ".join(text.split())) for name, text in _ENTRY.findall(paragraph))
            entries += [f"- {_code(name)}: {text}" for name, text in found if name in fields_of(cls)]
    if entries:
        yield "\n".join([*entries, ""])


def _row(cls: type, key: str, schema: dict[str, Any]) -> str:
    field = fields_of(cls)[key]
    given = schema["anyOf"][0] if "anyOf" in schema else schema  # the other is None, for a key that may be left out
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


def _names(cls: type, key: str) -> str:
    """Return the names to which a validator limits text, from its error, since no type knows them."""
    if fields_of(cls)[key].annotation is not str:
        return ""
    try:
        TypeAdapter(cls).validate_python({key: ""})
    except ValidationError as error:
        allowed = (name for problem in error.errors() if problem["loc"] == (key,) for name in allowed_by(problem))
        return ", ".join(map(_quoted, allowed))
    return ""


def _range(schema: dict[str, Any]) -> str:
    limits = [text.format(schema[limit]) for limit, text in _RANGES.items() if limit in schema]
    each = _range(schema["items"]) if "items" in schema else ""
    return " and ".join([*limits, *([f"each {each}"] if each else [])])


def _shared(classes: Sequence[type]) -> list[Any]:
    """Return the bases that all classes share, nearest first."""
    bases = [base for base in classes[0].__mro__[1:] if base not in (ABC, object)]
    return [base for base in bases if all(issubclass(cls, base) for cls in classes)]


def _section_of(cls: type, key: str) -> Section | None:
    """Return the section under a key, also of a key with a section for each of several names."""
    field = fields_of(cls)[key]
    return Section({"": get_args(field.annotation)[1]}) if _is_map(field) else Section({"": cls}).inner(key)


def _is_map(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is dict


def _quoted(value: object) -> str:
    return _code(json.dumps(value))


def _code(text: str) -> str:
    return f"`{text}`"


if __name__ == "__main__":
    sys.stdout.write(settings_reference())
