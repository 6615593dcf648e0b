"""One process at a time in a folder: a lock that the system takes back when its holder dies."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from salf.errors import RunFolderError

# Workers of a comparison that was killed notice it when their round is over.
_PATIENCE_SECONDS = 5.0
_PAUSE_SECONDS = 0.1


class FolderLock:
    """A lock on a folder, held from its making until `release`, or the death of the process.

    It is advice to other processes that ask for it, leaves no file, and is not there on Windows or on file systems that
    lock no folders. Raises `RunFolderError` if somebody else keeps it for more than `patience_seconds`.
    """

    def __init__(self, folder: Path, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._handle: int | None = None
        with suppress(OSError):
            self._handle = os.open(folder, os.O_RDONLY)
        patient_until = time.monotonic() + patience_seconds
        while self._handle is not None and not _locked(self._handle):
            if time.monotonic() >= patient_until:
                self.release()
                raise RunFolderError(
                    f"another process is at work on the run in {folder}; wait until it has ended, stop it, or choose "
                    "another folder"
                )
            time.sleep(_PAUSE_SECONDS)

    def release(self) -> None:
        """Let others in; releasing twice does no harm."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _locked(handle: int) -> bool:
    """Try to lock; return whether nobody else has, as far as the system can tell."""
    if sys.platform == "win32":
        return True
    import fcntl  # noqa: PLC0415 - not on Windows

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without such locks
        return True
    return True
