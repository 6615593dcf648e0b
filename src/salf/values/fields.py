"""Array types, field types of validated dataclasses, and the decorator that makes such a dataclass."""

from dataclasses import field
from functools import wraps
from typing import Annotated, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails
from typing_extensions import dataclass_transform

from salf.errors import InvalidSetting
from salf.values.wording import clause

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Unknown fields are errors, and so are NaN and infinite numbers.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, strict=True)]

Cls = TypeVar("Cls", bound=type)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field, field))
def validated(cls: Cls) -> Cls:
    """Make a class a frozen dataclass that validates its fields and takes them by keyword only.

    Unknown fields, NaN and infinite numbers are errors. The constructor raises `InvalidSetting`, which lists all of
    them. A `TypeAdapter` of the class raises pydantic's `ValidationError`.

    Write `dataclasses.field(default_factory=…)` for defaults that are made for each value. A plain dataclass that
    derives from the class would not understand pydantic's `Field` there.

    >>> @validated
    ... class Pause:
    ...     seconds: Positive = 1.0
    >>> Pause(seconds=2)
    Pause(seconds=2.0)
    >>> Pause(seconds=-1)
    Traceback (most recent call last):
    salf.errors.InvalidSetting: Pause.seconds is -1; choose a number greater than 0
    """
    made = dataclass(frozen=True, kw_only=True, config=STRICT)(cls)
    initialize = made.__init__

    @wraps(initialize)
    def explain(self: object, *args: object, **settings: object) -> None:
        try:
            initialize(self, *args, **settings)
        except ValidationError as error:
            problems = [_explained(type(self).__name__, problem) for problem in error.errors()]
            raise InvalidSetting("; ".join(problems)) from None

    made.__init__ = explain  # type: ignore[method-assign]  # - pydantic's own is still called
    return made  # type: ignore[return-value]  # - the class itself


def _explained(owner: str, problem: ErrorDetails) -> str:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "unexpected_keyword_argument":
        return f"{owner} has no setting '{key}'; rename or remove it"
    return clause(f"{owner}.{key}" if key else "", problem)
