"""Files that are either whole or not there."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from salf.errors import RunFolderError


def write_atomically(path: Path, payload: bytes) -> None:
    """Write a file so that a reader, or a later run after a crash, finds the old content or the new, never half of it.

    Raises `RunFolderError` when it cannot be written; the old content stays.
    """
    # The name is always the same, so that what a killed process has left half-written is overwritten by the next.
    temporary = path.with_name(f".{path.name}.partial")
    try:
        if path.exists() and not path.is_file():  # such as a device, in whose place the file would come
            raise RunFolderError(f"cannot write {path}: it is no ordinary file; name another")
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_names(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunFolderError(f"cannot write {path}: {error.strerror or error}; mend that and go on") from error
        raise


def _sync_names(folder: Path) -> None:
    """Let a file's new name survive the machine, where folders can be synced at all."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # such as on Windows, or in a folder that may be written to but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
