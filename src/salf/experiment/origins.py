"""Where the values of an experiment come from: a file can hold them, or they were given in Python."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from salf.values import Choice

NOT_REPRODUCIBLE = "This file alone does not reproduce the run:"


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


def reasons_in(toml: str) -> tuple[str, ...]:
    r"""Return why an experiment's file does not reproduce its run, from the comments of `Experiment.to_toml`.

    >>> reasons_in(f"# {NOT_REPRODUCIBLE}\n# - data was given in Python\n\nseed = 1")
    ('data was given in Python',)
    """
    first, _, rest = toml.partition("\n")
    lines = rest.partition("\n\n")[0].splitlines() if first == f"# {NOT_REPRODUCIBLE}" else []
    return tuple(line.removeprefix("# - ") for line in lines)
