"""Parts of error messages about settings: values in short, what is allowed, and the name that was probably meant."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from pydantic_core import ErrorDetails

_LONGEST_VALUE = 60

# What a value must be, by pydantic's names of errors.
_NEEDED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a table of settings, or an instance",
    "finite_number": "a finite number",
    "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number less than {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "text that is not empty",
}


def written(value: object) -> str:
    """Write a value as a file would, tables and long values in short.

    >>> written(True), written({"a": 1}), written("x")
    ('true', '{…}', "'x'")
    """
    if isinstance(value, Mapping):
        return "{…}" if value else "{}"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def one_of(value: object, allowed: Sequence[str]) -> str:
    """List what is allowed, with the name that was probably meant.

    >>> one_of("salff", ["fedavg", "salf"])
    "one of fedavg, salf (did you mean 'salf'?)"
    """
    return f"one of {', '.join(allowed)}{did_you_mean(value, allowed) if isinstance(value, str) else ''}"


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Return a question to append to an error, if one of the known names is close; else nothing.

    Args:
        name: What was written.
        known: The names that could have been written.
        prefix: What stands before the name in the answer.

    >>> did_you_mean("salff", ["fedavg", "salf"]), did_you_mean("x", ["fedavg"])
    (" (did you mean 'salf'?)", '')
    """
    close = get_close_matches(name, known, n=1)
    return f" (did you mean '{prefix}{close[0]}'?)" if close else ""


def allowed_by(problem: ErrorDetails) -> list[str]:
    """Return the names that pydantic says are allowed, such as the values of a `Literal`; empty for other problems."""
    return re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected", "")))


def clause(key: str, problem: ErrorDetails) -> str:
    """Return what is wrong with the value of a key, and what to write instead.

    Args:
        key: The dotted name of the key; empty for a problem of a whole table.
        problem: What pydantic says.
    """
    kind, value = problem["type"], problem["input"]
    if kind == "missing":
        return f"{key} is missing; set it"
    if kind == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key and not message.startswith(f"{key}.") else message
    if kind == "literal_error":
        needed = one_of(value, allowed_by(problem))
    elif kind in _NEEDED:
        needed = _NEEDED[kind].format(**problem.get("ctx", {}))
    else:
        reason = problem["msg"].removeprefix("Input should be ")
        needed = reason if reason != problem["msg"] else f"another value ({reason[:1].lower()}{reason[1:]})"
    return f"{key} is {written(value)}; choose {needed}"
