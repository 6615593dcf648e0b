"""Fetching published files once, from the first of their mirrors that has them, into the user's cache."""

import os
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pooch

from salf.data.files import expanded
from salf.errors import DataUnavailable


@dataclass(frozen=True)
class Archive:
    """Files and where to get them.

    `files` maps each name to its checksum, written `sha256:…`; `mirrors` are addresses to which a name is appended.
    """

    files: Mapping[str, str]
    mirrors: tuple[str, ...]


def cache_folder() -> Path:
    """Return where fetched files are kept: `SALF_CACHE` from the environment, else the system's place for caches."""
    chosen = os.environ.get("SALF_CACHE")
    return expanded("SALF_CACHE", chosen) if chosen else Path(pooch.os_cache("salf"))


def fetch(archive: Archive, folder: Path) -> None:
    """Put the files of `archive` into `folder`, unless they are there already with the right checksums.

    A file appears in the folder only when it is complete and right. Raises `DataUnavailable`, which says what went
    wrong with each mirror.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataUnavailable(
            f"the cache folder {folder} cannot be made: {error.strerror}; set the environment variable SALF_CACHE to "
            "a folder that can be written, or data.root to a folder that holds the files"
        ) from error
    mirrors = list(archive.mirrors)
    with _quiet():
        for name, checksum in archive.files.items():
            good = _fetch_one(name, checksum, mirrors, folder)
            # The other files come from the mirror that worked, without waiting again for those that did not.
            mirrors = [good, *(mirror for mirror in mirrors if mirror != good)]


def _fetch_one(name: str, checksum: str, mirrors: list[str], folder: Path) -> str:
    """Fetch one file and return the mirror it came from."""
    failures = []
    for mirror in mirrors:
        try:
            pooch.retrieve(mirror + name, known_hash=checksum, fname=name, path=folder)
        except OSError as error:  # the network's errors are of this kind too
            # The cause, where one is named, comes after what was tried.
            reason = str(error).rpartition("Caused by ")[2]
            failures.append(f"{mirror} failed ({textwrap.shorten(reason, 150)})")
        except ValueError:
            failures.append(f"{mirror} has another file (wrong checksum)")
        else:
            return mirror
    raise DataUnavailable(
        f"{name} cannot be downloaded to {folder}: {'; '.join(failures)}. Try again with a network, or get the "
        "published files by other means and say where they are: --set data.root=DIR"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pooch from announcing each download on standard error."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        yield
    finally:
        logger.setLevel(level)
