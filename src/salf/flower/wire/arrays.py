"""Flower's arrays and torch's tensors: the same bytes, read without pickle, without trust and without a copy."""

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from salf.errors import InvalidSetting

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4}  # of the header's length, by version of the format
_HEADER_BYTES = 10_000  # no array has a longer header
# NumPy evaluates a header as Python; the header of an array of numbers holds nothing but this.
_HEADER = re.compile(
    rb"\{\s*'descr':\s*'([<>|=]?[biufc]\d{1,2})',\s*'fortran_order':\s*(True|False),\s*"
    rb"'shape':\s*\(([\d, ]*)\),?\s*\}\s*"
)
_DIGITS = 18  # a length with more digits does not fit into 64 bits


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Convert a state dict to the record that Flower sends.

    Args:
        tensors: Tensors of any device and of any shape, by name. Their order is kept. NumPy, so Flower, has no
            bfloat16: such values travel as float32, without loss, and the server keeps them so. On the client,
            `load_state_dict` converts them back to the type of its model.

    Raises:
        InvalidSetting: NumPy has no such type, for example a float8.

    >>> size_of(to_record({"bias": torch.zeros(3)})) > 12  # the values and a header
    True
    >>> to_record({"bias": torch.ones(1, dtype=torch.bfloat16)})["bias"].dtype
    'float32'
    """
    arrays = {}
    for name, tensor in tensors.items():
        try:
            arrays[name] = Array(as_numpy(tensor))
        except TypeError as error:
            raise InvalidSetting(
                f"'{name}' is of type {tensor.dtype}, which Flower cannot carry; keep the global model in float32, "
                "float64, float16 or bfloat16"
            ) from error
    return ArrayRecord(arrays)


def as_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """Return the values of a tensor in its own type; bfloat16, which NumPy lacks, as float32."""
    carried = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    values: npt.NDArray[Any] = carried.detach().cpu().numpy()
    return values


def from_record(record: Mapping[str, Array]) -> dict[str, Tensor]:
    """Convert a record to a state dict in the record's own memory.

    Args:
        record: Arrays by name, such as `to_record` returns. The tensors share their memory: read them only.

    Raises:
        InvalidSetting: An entry is not an array of numbers; the message names it.

    >>> from_record(to_record({"bias": torch.arange(3.0)}))["bias"].tolist()
    [0.0, 1.0, 2.0]
    """
    tensors = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        for name, array in record.items():
            try:
                tensors[name] = torch.from_numpy(array_view(array))
            except (TypeError, ValueError) as error:
                raise InvalidSetting(f"'{name}' holds no array: {error}; send a model's state dict") from error
    return tensors


def size_of(record: Mapping[str, Array]) -> int:
    """Return how many bytes the arrays of a record take on the wire."""
    return sum(len(array.data) for array in record.values())


def array_view(array: Array) -> npt.NDArray[np.generic]:
    """Return the values of an array as a read-only view of its bytes.

    Nothing that the bytes say is evaluated. No memory is allocated for the size that they claim.

    Raises:
        TypeError: `array` is no Flower array.
        ValueError: The bytes are not exactly one array of numbers in NumPy's format.

    >>> array_view(Array(np.ones((2, 3)))).shape
    (2, 3)
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
    """Parse the header of NumPy's .npy format.

    Returns:
        The type, whether columns come first, the shape, and the offset of the values in bytes.

    Raises:
        ValueError: The header is not that of an array of numbers.
    """
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
        lengths.pop()  # after the last comma, or in the shape ()
    if not all(part.isdigit() and len(part) <= _DIGITS for part in lengths):
        raise ValueError("its header states no shape")
    return np.dtype(read[1].decode()), read[2] == b"True", tuple(map(int, lengths)), begins + length
