"""Finding the published files of an image set, and reading each whole or refusing it."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from salf.errors import DataUnavailable

CLASSES = 10
"""How many classes each of the image sets has."""


class Split(NamedTuple):
    """Training or test images as published: bytes of shape (examples, channels, height, width), and their labels."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def locate(folders: Sequence[Path], names: Sequence[str], suffixes: Sequence[str] = ("",)) -> list[Path]:
    """Return where each of `names` is, with the first of `suffixes` found: all in the first folder that holds any.

    Folders are never mixed: MNIST and Fashion-MNIST have the same file names. Raises `DataUnavailable`, which names
    the files that are missing and the places looked in.
    """
    found = {}
    for folder in folders:
        found = {name: path for name in names if (path := _first(folder, name, suffixes)) is not None}
        if found:
            folders = [folder]
            break
    missing = [name + suffixes[-1] for name in names if name not in found]
    if missing:
        raise DataUnavailable(
            f"{', '.join(missing)} not found in {' or '.join(map(str, folders))}: set data.root to the folder with the "
            "published files, or leave it out to have them downloaded"
        )
    return [found[name] for name in names]


def expanded(setting: str, folder: Path | str) -> Path:
    """Return the folder that a setting names, with `~` replaced; raises `DataUnavailable` if that is nobody's home."""
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise DataUnavailable(f"{setting} is '{folder}': {error} Write the folder out in full.") from error


def exists(path: Path) -> bool:
    """Tell whether there is anything at `path`; raises `DataUnavailable` where that cannot be told."""
    try:
        return path.exists()
    except OSError as error:
        raise unreadable(path, error) from error


def read_bytes(path: Path) -> bytes:
    """Return a file's content, decompressed if it is gzipped, whatever it is called."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(path, f"it cannot be decompressed ({error})") from error
    except OSError as error:
        raise unreadable(path, error) from error


def check_labels(path: Path, labels: npt.NDArray[np.uint8]) -> None:
    """Refuse labels that name no class."""
    if labels.max() >= CLASSES:
        raise damaged(path, f"it holds the label {labels.max()}; labels go from 0 to {CLASSES - 1}")


def damaged(path: Path, problem: str) -> DataUnavailable:
    """Return the error for a file that is not what was published."""
    return DataUnavailable(
        f"{path} is damaged: {problem}; put the published file there, or leave data.root out to have it downloaded"
    )


def unreadable(path: Path, error: OSError) -> DataUnavailable:
    """Return the error for a file that the system does not let us read."""
    return DataUnavailable(f"{path} cannot be read: {error.strerror or error}; mend that, or set data.root elsewhere")


def _first(folder: Path, name: str, suffixes: Sequence[str]) -> Path | None:
    candidates = [folder / (name + suffix) for suffix in suffixes]
    return next((path for path in candidates if exists(path)), None)
