"""What a network may be asked for: positive sizes, images of three dimensions, at least two classes."""

from typing import Annotated

from pydantic import Field

from salf.errors import InvalidSetting

Size = Annotated[int, Field(strict=True, ge=1)]
Sizes = tuple[Size, ...]
SomeSizes = Annotated[Sizes, Field(min_length=1)]


def require_positive(name: str, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one example if it has at least one dimension and none is empty, else raise `InvalidSetting`.

    >>> require_positive("mlp", (784,))
    (784,)
    """
    if not input_shape or min(input_shape) < 1:
        raise InvalidSetting(
            f"model.name is '{name}', which cannot take examples of shape {input_shape}; "
            "give data whose examples have at least one dimension, and at least one value in each"
        )
    return input_shape


def require_image(name: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channels, height, width) if that is what the examples have, else raise `InvalidSetting`.

    >>> require_image("cnn", (1, 28, 28))
    (1, 28, 28)
    """
    shape = require_positive(name, input_shape)
    if len(shape) != 3:
        raise InvalidSetting(
            f"model.name is '{name}', which takes images of shape (channels, height, width), not examples of shape "
            f"{shape}; choose 'mlp', or give the data that shape"
        )
    channels, height, width = shape
    return channels, height, width


def require_classes(num_classes: int) -> int:
    """Return the number of classes if there are at least two, else raise `InvalidSetting`."""
    if num_classes < 2:
        raise InvalidSetting(f"num_classes is {num_classes}, but a classifier needs 2 or more; give data with classes")
    return num_classes
