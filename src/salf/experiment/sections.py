"""What may stand in each table of an experiment file, read off the dataclasses that validate it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from itertools import chain
from typing import Any, get_args

from pydantic.fields import FieldInfo

from salf.errors import InvalidSetting
from salf.values import Choice, Registry

Table = dict[str, Any]


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


def complete(table: Mapping[str, object], section: Section, given: dict[str, object], prefix: str = "") -> Table:
    """Return the settings with every section's choice filled in, and written in full.

    Args:
        table: Settings nested as in a file; values given in Python may stand for whole sections.
        section: What may stand in the table.
        given: Receives those values that no table describes, each under the name that stands in for it.
        prefix: What stands before the keys in error messages.
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
            filled[key] = complete(value, inner, given, f"{prefix}{key}.")
        elif inner.keeps(f"{prefix}{key}", value):
            stand_in = f"given:{len(given)}"
            filled[key], given[stand_in] = {inner.tag: stand_in}, value
    return filled
