"""Parts of error messages: values in short, lists of what is allowed, and the name that was probably meant."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

_LONGEST_VALUE = 60


def shown(value: object) -> str:
    """Write a value as a file would, tables and long values in short.

    >>> shown(True), shown({"a": 1}), shown("x")
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
