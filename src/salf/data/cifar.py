"""The binary version of CIFAR-10.

Each of six batches is a sequence of records: a label and the pixels of one image.
"""

import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from salf.data.files import Split, check_labels, damaged, exists, locate, read_bytes, unreadable

PACKED = "cifar-10-binary.tar.gz"
"""The published archive of the batches."""

FOLDER = "cifar-10-batches-bin"
"""The folder in that archive."""

NAMES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
"""The batches; the last is the test set."""

_IMAGE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32


def read_cifar(folders: Sequence[Path]) -> tuple[Split, Split]:
    """Read training and test images of shape (3, 32, 32).

    They come from the batches if any exists, in one of `folders` or in `cifar-10-batches-bin` within it, else from
    their archive. A missing or damaged file raises `DataUnavailable`.
    """
    places = [place for folder in folders for place in (folder / FOLDER, folder)]
    archive = next((path for folder in folders if exists(path := folder / PACKED)), None)
    unpacked = any(exists(place / name) for place in places for name in NAMES)
    if archive is None or unpacked:
        contents = {path: read_bytes(path) for path in locate(places, NAMES)}
    else:
        contents = _unpack(archive)
    splits = {path: _parse(path, content) for path, content in contents.items()}
    # A batch does not state its length, but all have the same: this shows a truncated one.
    counts = {path: len(split.labels) for path, split in splits.items()}
    shortest, longest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[shortest] != counts[longest]:
        raise damaged(
            shortest,
            f"it holds {counts[shortest]} images, but {longest.name} holds {counts[longest]}",
        )
    *train, test = splits.values()
    return Split(np.concatenate([s.images for s in train]), np.concatenate([s.labels for s in train])), test


def _unpack(archive: Path) -> dict[Path, bytes]:
    """Return the batches in the archive, in order, without writing files."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as content:
            for member in content:
                name = member.name.removeprefix("./").removeprefix(f"{FOLDER}/")
                if name in NAMES and (file := content.extractfile(member)) is not None:
                    members[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise damaged(archive, f"it cannot be unpacked ({error})") from error
    except OSError as error:
        raise unreadable(archive, error) from error
    missing = [name for name in NAMES if name not in members]
    if missing:
        raise damaged(archive, f"{', '.join(missing)} is not in it")
    return {archive / FOLDER / name: members[name] for name in NAMES}


def _parse(path: Path, content: bytes) -> Split:
    """Return the images and labels of a batch."""
    if not content or len(content) % _RECORD_BYTES:
        raise damaged(path, f"its {len(content)} bytes are not one or more records of {_RECORD_BYTES} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD_BYTES)
    labels = records[:, 0]
    check_labels(path, labels)
    return Split(records[:, 1:].reshape(-1, *_IMAGE), labels)
