"""How users add methods, rules and device models."""

from typing import Any, TypeVar

from pydantic import Field
from typing_extensions import dataclass_transform

from salf.aggregation import RULES
from salf.devices import DEVICES
from salf.errors import InvalidSetting
from salf.methods import METHODS
from salf.registry import Registry

Cls = TypeVar("Cls", bound=type)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def register(cls: Cls) -> Cls:
    """Make a method, rule or device model known by its name, to files, overrides and the command line.

    The name is the default of the class's field `name`, or `kind` of a device model. Its other fields are settings,
    validated like those of built-in classes. A class without a dataclass decorator becomes a frozen dataclass, so
    `@salf.register` above a class is enough. Installed packages declare entry points instead, in the groups
    `salf.methods`, `salf.rules` and `salf.devices`.

    Raises:
        InvalidSetting: The class is none of the three, is abstract, or has no name of its own.

    >>> from typing import Literal
    >>> import salf
    >>> @salf.register
    ... class Halved(salf.Rule):
    ...     name: Literal["halved"] = "halved"
    ...
    ...     def factor(self, share):
    ...         return 0.5 / share.weight
    >>> salf.Experiment.load("digits", **{"method.rule": "halved"}).method.rule
    Halved(min_contributors=1, weight_by_examples=False, normalise=None, name='halved')
    """
    registries: tuple[Registry[Any], ...] = (METHODS, RULES, DEVICES)
    for registry in registries:
        if isinstance(cls, type) and issubclass(cls, registry.bases):  # type: ignore[redundant-expr]  # - untyped calls
            registry.register(cls)
            return cls
    bases = ", ".join(base.__name__ for registry in registries for base in registry.bases)
    raise InvalidSetting(f"{cls!r} is no method, rule or device model; make it a subclass of one of {bases}")
