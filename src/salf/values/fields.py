"""Field types of validated dataclasses, and the decorator that makes such a dataclass."""

from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from typing_extensions import dataclass_transform

# Unknown fields are errors, and so are NaN and infinite numbers.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, strict=True)]

Cls = TypeVar("Cls", bound=type)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def validated(cls: Cls) -> Cls:
    """Make a class a frozen dataclass that validates its fields and takes them by keyword only.

    Unknown fields, NaN and infinite numbers are errors.

    >>> @validated
    ... class Pause:
    ...     seconds: Positive = 1.0
    >>> Pause(seconds=2)
    Pause(seconds=2.0)
    """
    return dataclass(frozen=True, kw_only=True, config=STRICT)(cls)  # type: ignore[return-value]  # the class itself
