"""Registries: the classes of one kind that settings choose by name, built-in, registered or installed."""

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationInfo
from pydantic_core import CoreSchema, PydanticKnownError, core_schema, to_json, to_jsonable_python

from salf.errors import InvalidSetting
from salf.values import validated

Value = TypeVar("Value")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_RESERVED = ("all",)  # `--methods all` means every method


class ExtensionWarning(UserWarning):
    """An installed package declares a method, rule or device model that cannot be used."""


class Registry(Mapping[str, type[Value]], Generic[Value]):
    """The subclasses of `bases` that settings choose by the value of their key `tag`.

    Iteration yields the built-in names first, then the others in the order in which they were added. Installed packages
    declare classes as entry points of `group`. They are imported when an unknown name is looked up or when the names
    are listed. An entry point that fails is reported with an `ExtensionWarning`; the others still work.

    Args:
        bases: The dataclasses; every member derives from one of them.
        members: The built-in classes, in the order of listings.
        what: What a member is, in messages: "method".
        tag: The field whose default is the name of a class: "name" or "kind".
        group: The group of entry points: "salf.methods".
    """

    def __init__(
        self, bases: tuple[type, ...], members: tuple[type[Value], ...], *, what: str, tag: str, group: str
    ) -> None:
        self.bases, self.what, self.tag, self.group = bases, what, tag, group
        self._classes = {self._default_name(cls): cls for cls in members}
        self.built_in = tuple(self._classes)
        self._portable = set(members)  # every process with the same packages knows these by name
        self._installed: list[EntryPoint] | None = None

    def __getitem__(self, name: str) -> type[Value]:
        """Return the class of a name; import installed packages if it is unknown."""
        if name not in self._classes:
            self._load_installed()
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names, and import installed packages only after those that are known already."""
        known = tuple(self._classes)
        yield from known
        self._load_installed()
        yield from (name for name in tuple(self._classes) if name not in known)

    def __len__(self) -> int:
        """Return the number of classes, installed ones included."""
        self._load_installed()
        return len(self._classes)

    def register(self, cls: type[Value]) -> type[Value]:
        """Add a class under the default of its field `tag`, and return it.

        A class that is not decorated as a dataclass becomes one, frozen and validated like the built-in ones.

        Raises:
            InvalidSetting: The class does not derive from `bases`, is abstract, or has no name of its own.
        """
        self._classes[self._checked_name(cls)] = cls
        return cls

    def clear(self) -> None:
        """Forget all classes but the built-in ones and those of installed packages; for tests."""
        self._classes = {name: cls for name, cls in self._classes.items() if cls in self._portable}

    def name_of(self, value: Value) -> str:
        """Return the registered name of a value's class, or its `module:QualName` if it is not registered.

        >>> from salf.methods import METHODS, Salf
        >>> METHODS.name_of(Salf())
        'salf'
        """
        return str(getattr(value, self.tag)) if self.is_registered(value) else _path(type(value))

    def is_table(self, value: Value) -> bool:
        """Say whether a table of settings, with what is registered here, describes a value in full."""
        if not self.is_registered(value):
            return False
        try:
            return bool(TypeAdapter(type(value)).validate_json(to_json(value), strict=True) == value)
        except Exception:  # noqa: BLE001 - the fields of a user's class may do anything
            return False

    def origin(self, value: Value) -> str:
        """Say how a value came into an experiment, if another process cannot read it from a file; else return "".

        A value of a registered class counts as read from a file only if its table describes it in full.
        """
        if not self.is_table(value):
            return f"was given in Python: {_path(type(value))}"
        return "" if type(value) in self._portable else f"is registered in Python: {_path(type(value))}"

    def is_registered(self, value: Value) -> bool:
        """Say whether a value's class is the one of its name."""
        return self._classes.get(getattr(value, self.tag, "")) is type(value)

    def _checked_name(self, cls: type) -> str:
        """Return the name of a class; raise `InvalidSetting` if it cannot be a member."""
        if not issubclass(cls, self.bases):
            bases = " or ".join(map(_path, self.bases))
            raise InvalidSetting(f"{cls!r} is not a {self.what}; make it a subclass of {bases}")
        if "__pydantic_validator__" not in vars(cls):
            validated(cls)  # changes the class itself
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing:
            raise InvalidSetting(f"{_path(cls)} is abstract; define {', '.join(missing)}")
        name = self._default_name(cls)
        known = self._classes.get(name, cls)
        if _path(known) != _path(cls):  # a class that is defined a second time, in a notebook, replaces the first
            raise InvalidSetting(
                f"{_path(cls)} has the {self.tag} '{name}' of {_path(known)}; choose a {self.tag} that is not in use"
            )
        return name

    def _default_name(self, cls: type) -> str:
        """Return the name of a class, the default of its field `tag`."""
        field = getattr(cls, "__pydantic_fields__", {}).get(self.tag)
        name = None if field is None else field.default
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
            given = f"the {self.tag} {name!r}" if isinstance(name, str) else f"no {self.tag}"
            raise InvalidSetting(
                f'{_path(cls)} has {given}; add a field such as {self.tag}: Literal["mine"] = "mine", with a name of '
                "lower-case letters, digits and hyphens"
            )
        return name

    def _load_installed(self) -> None:
        """Register the entry points of installed packages, once."""
        if self._installed is not None:
            return
        self._installed = sorted(entry_points(group=self.group), key=lambda entry: entry.name)
        for entry in self._installed:
            try:
                cls = entry.load()
                name = self._checked_name(cls)
                if name != entry.name:
                    raise InvalidSetting(f"its {self.tag} is '{name}'; use one name for both")
                self._classes[name] = cls
                self._portable.add(cls)
            except Exception as error:  # noqa: BLE001 - importing another package may raise anything
                package = "" if entry.dist is None else f" of the package {entry.dist.name}"
                warnings.warn(
                    f"the {self.what} '{entry.name}'{package} cannot be used ({type(error).__name__}: {error}); "
                    "repair or remove that package",
                    ExtensionWarning,
                    stacklevel=3,
                )


@dataclass(frozen=True)
class Choice:
    """The type annotation of a field that holds a value of a registry, a table of settings in a file.

    Args:
        registry: Where the classes are looked up.
        brief: Whether the name alone may stand for the table.
    """

    registry: Registry[Any]
    brief: bool = False

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        """Return the schema that validates and serializes such a field."""
        return core_schema.with_info_plain_validator_function(
            self._validate, serialization=core_schema.plain_serializer_function_ser_schema(self.table_of)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: object) -> dict[str, object]:
        """Return what JSON knows of the field: it holds a table."""
        return {"type": "object"}

    def _validate(self, value: object, info: ValidationInfo[Any]) -> object:
        """Return the value that a table describes; keep a value that was given in Python as it is.

        `info.context` maps stand-ins for names to values that were given in Python.
        """
        registry = self.registry
        if isinstance(value, registry.bases):
            return value
        table = {registry.tag: value} if self.brief and isinstance(value, str) else value
        if not isinstance(table, Mapping):
            raise PydanticKnownError("dict_type")
        name = table.get(registry.tag)
        given = (info.context or {}).get(name) if isinstance(name, str) else None
        if isinstance(given, registry.bases):
            return given
        if not isinstance(name, str) or name not in registry:
            expected = ", ".join(f"'{known}'" for known in registry)
            details = {"discriminator": registry.tag, "tag": str(name), "expected_tags": expected}
            raise PydanticKnownError("union_tag_invalid", details)
        adapter = TypeAdapter(registry[name])
        if info.mode == "python":
            return adapter.validate_python(table, context=info.context)
        return adapter.validate_json(to_json(table, inf_nan_mode="constants"), strict=True, context=info.context)

    def table_of(self, value: object) -> dict[str, object]:
        """Return the table of settings that describes a value as well as a file can.

        The table of a value that pydantic cannot describe holds the name of its class only. Fields without a form in a
        file are described by their type.
        """
        table = to_jsonable_python(value, exclude_none=True, inf_nan_mode="constants", fallback=_described)
        settings = table if isinstance(table, dict) else {}  # of a class that pydantic cannot describe
        return {**settings, self.registry.tag: self.registry.name_of(value)}


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _described(value: object) -> str:
    """Describe a value that no file can hold, in the same way in every process."""
    return f"a value of type {_path(type(value))}"
