"""Numbers as text, and as values that JSON can hold."""

import math
from collections.abc import Mapping


def json_value(value: object) -> object:
    """Return what JSON can hold: None stands for numbers that are not finite, lists for tuples.

    >>> json_value({"mean": math.nan, "values": (1, 2.5, math.inf)})
    {'mean': None, 'values': [1, 2.5, None]}
    """
    if isinstance(value, Mapping):
        return {key: json_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def counted(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural where needed.

    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(share: float, deviation: float = math.nan) -> str:
    """Write a share in per cent, with its deviation if that is known.

    Args:
        share: Between 0 and 1; NaN if it is not known.
        deviation: The standard deviation of the share; NaN if it is not known.

    >>> percent(0.9571), percent(0.9571, 0.01), percent(float("nan"))
    ('95.7 %', '95.7 % ± 1.0', '–')
    """
    if not math.isfinite(share):
        return "–"
    around = f" ± {100 * deviation:.1f}" if math.isfinite(deviation) else ""
    return f"{100 * share:.1f} %{around}"


def seconds(value: float) -> str:
    """Write virtual seconds; an infinite time is never.

    >>> seconds(1234.5), seconds(2.25), seconds(float("inf"))
    ('1234 s', '2.25 s', 'never')
    """
    if math.isinf(value):
        return "never"
    return f"{value:.0f} s" if value >= 100 else f"{value:.3g} s"


def megabytes(size: float) -> str:
    """Write a number of bytes in MB, without the unit.

    >>> megabytes(1_234_567), megabytes(123_456_789)
    ('1.2', '123')
    """
    value = size / 1e6
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"
