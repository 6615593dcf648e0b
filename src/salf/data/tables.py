"""Columns of tables as tensors, such as those of Hugging Face's `datasets`."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from salf.errors import InvalidSetting, check_type


@runtime_checkable
class Columns(Protocol):
    """A mapping from names to columns, or a split of a Hugging Face data set."""

    def __getitem__(self, column: str, /) -> Sequence[object]:
        """Return a column; raises `KeyError` if there is none of that name."""
        ...


def read_column(table: Columns, column: str, where: str) -> torch.Tensor:
    """Return a column as a tensor with one row per example.

    Images, of Pillow or as arrays of bytes, of shape (height, width) or (height, width, channels), become float32 of
    shape (channels, height, width), normalised to [−1, 1] as in `load`. Other columns keep their numbers.

    Args:
        table: The table.
        column: Its name in the table.
        where: What error messages call the table.

    >>> read_column({"image": [np.full((2, 2), 255, np.uint8)]}, "image", where="train").tolist()
    [[[[1.0, 1.0], [1.0, 1.0]]]]
    """
    check_type(where, table, Columns, "a table: a mapping from names to columns, or a split of a Hugging Face data set")
    try:
        cells = table[column]
    except (LookupError, TypeError, ValueError) as error:  # Hugging Face raises ValueError
        raise InvalidSetting(f"{where} has no column '{column}' ({error}); name one of its columns") from error
    try:
        values = [np.asarray(cell) for cell in cells]
    except (TypeError, ValueError) as error:
        raise InvalidSetting(
            f"column '{column}' of {where} cannot be read ({error}); name a column of numbers"
        ) from error
    if not values:
        raise InvalidSetting(f"column '{column}' of {where} is empty; give at least one example")
    shapes = sorted({value.shape for value in values})
    if len(shapes) > 1:
        some = ", ".join(map(str, shapes[:3]))
        raise InvalidSetting(f"column '{column}' of {where} holds different shapes ({some}); make them equal")
    rows: npt.NDArray[np.generic] = np.stack(values)
    if rows.dtype == np.uint8 and rows.ndim in (3, 4):
        return _images(rows)
    try:
        return torch.from_numpy(rows)
    except TypeError as error:
        what = f"column '{column}' of {where} holds {rows.dtype}, not numbers"
        raise InvalidSetting(f"{what}; name another column, or convert it") from error


def _images(pixels: npt.NDArray[np.generic]) -> torch.Tensor:
    """Return images with channels first, normalised to [−1, 1]."""
    images = torch.from_numpy(pixels).float().div_(255).sub_(0.5).div_(0.5)
    return images.unsqueeze(1) if images.dim() == 3 else images.movedim(-1, 1).contiguous()
