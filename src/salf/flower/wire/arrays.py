"""Flower's arrays and torch's tensors: the same bytes, read without pickle, without trust and without a copy."""

import math
import re
import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from salf.errors import InvalidSetting

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4}  # of the header's length, by version of the format
_HEADER_BYTES = 10_000  # an .npy header longer than this is no array's
# NumPy evaluates a header as Python; of an array of numbers it can hold nothing but this.
_HEADER = re.compile(
    rb"\{\s*'descr':\s*'([<>|=]?[biufc]\d{1,2})',\s*'fortran_order':\s*(True|False),\s*"
    rb"'shape':\s*\(([\d, ]*)\),?\s*\}\s*"
)
_DIGITS = 18  # more, and a length does not fit into 64 bits


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return a state dict as Flower sends it. Raises `InvalidSetting` for a type that NumPy does not have."""
    arrays = {}
    for name, tensor in tensors.items():
        try:
            arrays[name] = Array(tensor.detach().cpu().numpy())
        except TypeError as error:
            raise InvalidSetting(
                f"'{name}' is of type {tensor.dtype}, which Flower cannot carry; keep the global model in float32, "
                "float64 or float16"
            ) from error
    return ArrayRecord(arrays)


def from_record(record: Mapping[str, Array]) -> dict[str, Tensor]:
    """Return what `to_record` was given, in the record's own memory: read it, but do not write to it.

    Raises `InvalidSetting`, naming the array, for what is none.
    """
    tensors = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        for name, array in record.items():
            try:
                tensors[name] = torch.from_numpy(view(array))
            except (TypeError, ValueError) as error:
                raise InvalidSetting(f"'{name}' is no array that torch can hold: {error}") from error
    return tensors


def view(array: Array) -> npt.NDArray[np.generic]:
    """Return the values of an array without copying them; they cannot be written to.

    Raises `ValueError` or `TypeError` for what is not one whole array of numbers. Nothing that the bytes say is
    evaluated, and whatever size they claim, no memory is set aside for it.
    """
    if not isinstance(array, Array):
        raise TypeError(f"it is a {type(array).__name__}")
    if array.stype != "numpy.ndarray":
        raise ValueError(f"it is written as '{array.stype}', not as 'numpy.ndarray'")
    data = array.data
    dtype, columns_first, shape, start = _read_header(data)
    count = math.prod(shape)
    if len(data) - start != count * dtype.itemsize:
        raise ValueError("its size is not what its header says")
    values = np.frombuffer(data, dtype, count, start) if count else np.empty(0, dtype)
    return values.reshape(shape, order="F" if columns_first else "C")


def _read_header(data: bytes) -> tuple[np.dtype[np.generic], bool, tuple[int, ...], int]:
    """Return the type, whether columns come first, the shape, and where the values begin (NumPy's format .npy)."""
    version = (data[6], data[7]) if data[:6] == _MAGIC and len(data) > 7 else None
    if version not in _LENGTH_BYTES:
        raise ValueError("it does not begin as an array of NumPy's format, version 1 or 2")
    begins = 8 + _LENGTH_BYTES[version]
    length = int.from_bytes(data[8:begins], "little")
    read = _HEADER.fullmatch(data[begins : begins + length]) if length <= _HEADER_BYTES else None
    if read is None:
        raise ValueError("its header is not that of an array of numbers")
    lengths = [part.strip() for part in read[3].split(b",")]
    if lengths[-1] == b"":
        lengths.pop()  # a comma follows the last one, or there are none
    if not all(part.isdigit() and len(part) <= _DIGITS for part in lengths):
        raise ValueError("its header states no shape")
    return np.dtype(read[1].decode()), read[2] == b"True", tuple(map(int, lengths)), begins + length
