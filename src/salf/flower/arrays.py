"""Flower's arrays and torch's tensors: the same bytes, read without pickle, without trust and without a copy."""

import io
import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from salf.errors import InvalidSetting

_HEADER_BYTES = 10_000  # an .npy header longer than this is no array's


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

    Raises `ValueError` or `TypeError` for what is not one whole array of numbers. Whatever size the header claims, no
    memory is set aside for it.
    """
    if not isinstance(array, Array):
        raise TypeError(f"it is a {type(array).__name__}")
    if array.stype != "numpy.ndarray":
        raise ValueError(f"it is written as '{array.stype}', not as 'numpy.ndarray'")
    stream = io.BytesIO(array.data)
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its format has version {version}")
    shape, columns_first, dtype = read(stream, max_header_size=_HEADER_BYTES)
    if dtype.hasobject or dtype.kind not in "biufc":
        raise ValueError(f"it holds {dtype}, not numbers")
    count = 1
    for length in shape:
        count *= int(length)
    if min(shape, default=0) < 0 or len(array.data) - stream.tell() != count * dtype.itemsize:
        raise ValueError("its size is not what its header says")
    values = np.frombuffer(array.data, dtype, count, stream.tell()) if count else np.empty(0, dtype)
    return values.reshape(shape, order="F" if columns_first else "C")
