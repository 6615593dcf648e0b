"""One process at a time in a folder; the system frees the lock when its holder dies."""

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from salf.errors import RunFolderError

LOCK_NAME = ".lock"  # an empty file that stays in the folder: removing it could let two processes in
# Workers of a killed comparison leave when their round is over.
_PATIENCE_SECONDS = 5.0


def lock_folder(folder: Path, patience_seconds: float = _PATIENCE_SECONDS) -> BaseFileLock:
    """Lock a folder against other processes; call `release` on the result, or let the process end.

    File systems without locks are used unlocked.

    Args:
        folder: An existing folder.
        patience_seconds: How long to wait while another process holds the lock.

    Raises:
        RunFolderError: Another process holds the lock for longer than that.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     lock = lock_folder(Path(folder))
    ...     try:
    ...         lock_folder(Path(folder), patience_seconds=0.0)
    ...     except RunFolderError as error:
    ...         print(str(error).replace(folder, "DIR"))
    ...     lock.release()
    another process is at work on the run in DIR; wait until it ends, stop it, or choose another folder
    """
    lock = FileLock(folder / LOCK_NAME, timeout=patience_seconds, poll_interval=0.1, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunFolderError(
            f"another process is at work on the run in {folder}; wait until it ends, stop it, or choose another folder"
        ) from error
    except OSError:  # no locks here; a folder that cannot be written to is refused at the first write
        pass
    return lock
