"""The IDX format of MNIST and Fashion-MNIST.

A file has a big-endian header with the array's shape, then its bytes.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from salf.data.files import Split, check_labels, damaged, locate, read_bytes

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""The four files of both sets."""

_SIDE = 28


def read_idx(folders: Sequence[Path]) -> tuple[Split, Split]:
    """Read training and test images of shape (1, 28, 28), gzipped or not.

    All come from the first folder that holds any of the four files. A missing or damaged file raises `DataUnavailable`.
    """
    train_images, train_labels, test_images, test_labels = locate(folders, NAMES, suffixes=("", ".gz"))
    return _read_split(train_images, train_labels), _read_split(test_images, test_labels)


def _read_split(images_path: Path, labels_path: Path) -> Split:
    """Read images and labels that belong together."""
    images = _read_array(images_path, dimensions=3)
    labels = _read_array(labels_path, dimensions=1)
    if images.shape[1:] != (_SIDE, _SIDE):
        size = "×".join(map(str, images.shape[1:]))
        raise damaged(images_path, f"its images have {size} pixels, not {_SIDE}×{_SIDE}")
    if len(images) != len(labels):
        raise damaged(labels_path, f"it holds {len(labels)} labels for the {len(images)} images in {images_path.name}")
    check_labels(labels_path, labels)
    return Split(images[:, None], labels)


def _read_array(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read one array of bytes and check it against its header."""
    content = read_bytes(path)
    # Two zero bytes, the type (8: unsigned bytes), the number of dimensions; then each dimension in four bytes.
    magic = bytes([0, 0, 8, dimensions])
    header = 4 + 4 * dimensions
    if not content.startswith(magic):
        raise damaged(path, f"it begins with the bytes '{content[:4].hex()}', not '{magic.hex()}'")
    if len(content) < header:
        raise damaged(path, f"it ends within its header, after {len(content)} bytes")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", count=dimensions, offset=4))
    held = len(content) - header
    if held != math.prod(shape):
        raise damaged(path, f"it holds {held} bytes where its header announces {math.prod(shape)}")
    if held == 0:
        raise damaged(path, "it holds nothing")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
