"""Checks that networks share: sizes, shapes of examples, number of classes."""

from typing import Annotated

from pydantic import Field

from salf.errors import InvalidSetting
from salf.values import Count

Sizes = tuple[Count, ...]
SomeSizes = Annotated[Sizes, Field(min_length=1)]


def require_positive(name: str, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one example, which must have values in every dimension.

    `name` is the model's, for the message.

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
    """Return the shape of one example, which must be (channels, height, width).

    `name` is the model's, for the message.

    >>> require_image("cnn", (1, 28, 28))
    (1, 28, 28)
    """
    shape = require_positive(name, input_shape)
    if len(shape) != 3:
        raise InvalidSetting(
            f"model.name is '{name}', which takes images of shape (channels, height, width), not examples of shape "
            f"{shape}; choose 'mlp', or give data of that shape"
        )
    channels, height, width = shape
    return channels, height, width


def require_classes(num_classes: int) -> int:
    """Return the number of classes, which must be at least 2."""
    if num_classes < 2:
        raise InvalidSetting(
            f"num_classes is {num_classes}, but a classifier needs at least 2; give data with more classes"
        )
    return num_classes
