"""The published files of image sets: where they are, and whether they are whole."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from salf.errors import DataUnavailable

CLASSES = 10
"""The number of classes of every image set."""


class Split(NamedTuple):
    """Training or test images as published.

    Attributes:
        images: Bytes of shape (examples, channels, height, width).
        labels: Their classes, shape (examples,).
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def locate(folders: Sequence[Path], names: Sequence[str], suffixes: Sequence[str] = ("",)) -> list[Path]:
    """Return the path of each file, all in the first folder that holds any of them.

    Folders are never mixed, because MNIST and Fashion-MNIST have the same file names.

    Args:
        folders: Where to look, in this order.
        names: The files, without suffixes.
        suffixes: Appended to a name; the first that exists is taken.

    Raises:
        DataUnavailable: Files are missing; the message names them and the folders.
    """
    found = {}
    for folder in folders:
        found = {name: path for name in names if (path := _first(folder, name, suffixes)) is not None}
        if found:
            folders = [folder]
            break
    missing = [name + suffixes[-1] for name in names if name not in found]
    if missing:
        places = " or ".join(map(str, folders))
        raise DataUnavailable(f"{', '.join(missing)} not found in {places}; set data.root, or leave it out to download")
    return [found[name] for name in names]


def expanded(setting: str, folder: Path | str) -> Path:
    """Return the folder that a setting names, with `~` replaced by the home folder."""
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise DataUnavailable(f"{setting} is '{folder}', which has no home folder; write the full path") from error


def exists(path: Path) -> bool:
    """Return whether `path` exists; raise `DataUnavailable` if that is unknown."""
    try:
        return path.exists()
    except OSError as error:
        raise unreadable(path, error) from error


def read_bytes(path: Path) -> bytes:
    """Return a file's content, decompressed if it is gzipped, whatever its name."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(path, f"it cannot be decompressed ({error})") from error
    except OSError as error:
        raise unreadable(path, error) from error


def check_labels(path: Path, labels: npt.NDArray[np.uint8]) -> None:
    """Raise `DataUnavailable` for labels above the last class."""
    if labels.max() >= CLASSES:
        raise damaged(path, f"it holds the label {labels.max()}; labels go from 0 to {CLASSES - 1}")


def damaged(path: Path, problem: str) -> DataUnavailable:
    """Return the error for a file that is not what was published."""
    return DataUnavailable(f"{path} is damaged: {problem}; replace it, or leave data.root out to download it")


def unreadable(path: Path, error: OSError) -> DataUnavailable:
    """Return the error for a file that cannot be read."""
    reason = error.strerror or error
    return DataUnavailable(
        f"{path} cannot be read: {reason}; check its permissions, or set data.root to another folder"
    )


def _first(folder: Path, name: str, suffixes: Sequence[str]) -> Path | None:
    candidates = [folder / (name + suffix) for suffix in suffixes]
    return next((path for path in candidates if exists(path)), None)
