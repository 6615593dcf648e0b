"""Field types of validated dataclasses, and their strict configuration."""

from typing import Annotated

from pydantic import ConfigDict, Field

# Unknown fields are errors, and so are NaN and infinite numbers.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
