"""Columns of tables, such as those of Hugging Face's `datasets`, as tensors."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from salf.errors import InvalidSetting, check_type


@runtime_checkable
class Table(Protocol):
    """Named columns: a mapping from names to columns, or a split of a data set of Hugging Face."""

    def __getitem__(self, column: str, /) -> Sequence[object]:
        """Return a column; raises `KeyError` if there is none of that name."""
        ...


def read_column(table: Table, column: str, where: str) -> torch.Tensor:
    """Return a column, one row per example; `where` says in errors which table it is.

    Images, of Pillow or as arrays of bytes, of shape (height, width) or (height, width, channels), become float32 of
    shape (channels, height, width), scaled to [0, 1] and normalised to [−1, 1] as `load` does. All else keeps its
    numbers.

    >>> read_column({"image": [np.full((2, 2), 255, np.uint8)]}, "image", where="train").tolist()
    [[[[1.0, 1.0], [1.0, 1.0]]]]
    """
    check_type(where, table, Table, "a table: a mapping from names to columns, or a split of a Hugging Face data set")
    try:
        cells = table[column]
    except (LookupError, TypeError, ValueError) as error:  # Hugging Face's tables raise the last
        raise InvalidSetting(f"{where} has no column '{column}' ({error}); name one that it has") from error
    try:
        values = [np.asarray(cell) for cell in cells]
    except (TypeError, ValueError) as error:
        raise InvalidSetting(f"column '{column}' of {where} cannot be read ({error}); name one of numbers") from error
    if not values:
        raise InvalidSetting(f"column '{column}' of {where} is empty; give at least one example")
    shapes = sorted({value.shape for value in values})
    if len(shapes) > 1:
        some = ", ".join(map(str, shapes[:3]))
        raise InvalidSetting(
            f"column '{column}' of {where} holds examples of different shapes ({some}); make them alike"
        )
    rows: npt.NDArray[np.generic] = np.stack(values)
    if rows.dtype == np.uint8 and rows.ndim in (3, 4):
        return _images(rows)
    try:
        return torch.from_numpy(rows)
    except TypeError as error:
        raise InvalidSetting(
            f"column '{column}' of {where} holds no numbers but {rows.dtype}; name another, or make numbers of it"
        ) from error


def _images(pixels: npt.NDArray[np.generic]) -> torch.Tensor:
    images = torch.from_numpy(pixels).float().div_(255).sub_(0.5).div_(0.5)
    return images.unsqueeze(1) if images.dim() == 3 else images.movedim(-1, 1).contiguous()
