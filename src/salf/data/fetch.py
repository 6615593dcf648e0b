"""Downloading published files once into the user's cache."""

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pooch

from salf.data.files import expanded
from salf.errors import DataUnavailable


def cache_folder() -> Path:
    """Return the folder of downloads: `SALF_CACHE`, else the system's cache folder."""
    chosen = os.environ.get("SALF_CACHE")
    return expanded("SALF_CACHE", chosen) if chosen else Path(pooch.os_cache("salf"))


def fetch(files: Mapping[str, str], mirrors: Sequence[str], folder: Path) -> None:
    """Download the files that `folder` does not hold with the right checksums.

    A file appears in the folder only when it is complete and its checksum is right.

    Args:
        files: The checksum of each file, written `sha256:…`, by its name.
        mirrors: Addresses to which a name is appended; the first that works is used.
        folder: Where to put them; it is created if necessary.

    Raises:
        DataUnavailable: No mirror works; the message says what failed at each.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataUnavailable(
            f"the cache folder {folder} cannot be made: {error.strerror}; set the environment variable SALF_CACHE to "
            "a writable folder, or data.root to a folder that holds the files"
        ) from error
    with _quiet():
        for name, checksum in files.items():
            good = _fetch_one(name, checksum, mirrors, folder)
            # The next files come from the mirror that worked, so failing mirrors are not tried again.
            mirrors = [good, *(mirror for mirror in mirrors if mirror != good)]


def _fetch_one(name: str, checksum: str, mirrors: Sequence[str], folder: Path) -> str:
    """Download one file and return the mirror that had it."""
    failures = []
    for mirror in mirrors:
        try:
            pooch.retrieve(mirror + name, known_hash=checksum, fname=name, path=folder)
        except OSError as error:  # includes network errors, whose cause comes last
            reason = str(error).rpartition("Caused by ")[2]
            failures.append(f"{mirror} failed ({textwrap.shorten(reason, 150)})")
        except ValueError:
            failures.append(f"{mirror} has another file (wrong checksum)")
        else:
            return mirror
    raise DataUnavailable(
        f"{name} cannot be downloaded to {folder}: {', '.join(failures)}; check the network, or copy the published "
        "files to a folder DIR and pass --set data.root=DIR"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pooch's messages about downloads."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        yield
    finally:
        logger.setLevel(level)
