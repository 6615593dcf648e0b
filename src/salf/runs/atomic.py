"""Files that are either complete or absent."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from salf.errors import RunFolderError

ELSEWHERE = "start the run again in another folder"


def write_atomically(path: Path, payload: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    The content is on the disk before the file gets its name, so this also holds when the process or the machine dies.

    Args:
        path: Where to write; a regular file, or nothing yet.
        payload: The whole new content.

    Raises:
        RunFolderError: The file cannot be written; the old content stays.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder) / "note.txt", b"new")
    ...     (Path(folder) / "note.txt").read_bytes()
    b'new'
    """
    # The name is always the same, so the next write replaces what a killed process left half-written.
    temporary = path.with_name(f".{path.name}.partial")
    try:
        if path.exists() and not path.is_file():  # such as a device, which the rename would replace
            raise RunFolderError(f"cannot write {path}: it is not a regular file; choose another name")
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
            raise unwritable(path, error) from error
        raise


def unwritable(path: Path, error: OSError) -> RunFolderError:
    """Return the error for a file that cannot be written.

    >>> print(unwritable(Path("a.txt"), OSError(28, "No space left on device")))
    cannot write a.txt: No space left on device; free space or check its permissions, then resume
    """
    return RunFolderError(f"cannot write {path}: {reason_of(error)}; free space or check its permissions, then resume")


def reason_of(error: OSError | ValueError) -> str:
    """Return what the system says, without the path and the error's number.

    >>> reason_of(OSError(28, "No space left on device", "/data"))
    'No space left on device'
    """
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it; one that is already there is left as it is.

    Raises:
        RunFolderError: The system refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot make the folder {path}: {reason_of(error)}; choose another") from error


@contextmanager
def reading(file: Path, remedy: str = ELSEWHERE) -> Iterator[None]:
    """Turn what fails in the block, which reads a file of a run, into a `RunFolderError`.

    Args:
        file: The file that is read.
        remedy: What to do if its content is not what it should be.

    >>> with reading(Path("records.jsonl")):
    ...     raise ValueError("no JSON")
    Traceback (most recent call last):
    salf.errors.RunFolderError: records.jsonl is damaged (no JSON); start the run again in another folder
    """
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"cannot read {file}: {reason_of(error)}; check its permissions") from error
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise RunFolderError(f"{file} is damaged ({reason}); {remedy}") from error


def _sync_names(folder: Path) -> None:
    """Make a file's new name survive a crash of the machine, where folders can be synced."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # on Windows, or in a folder that may be written to but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
