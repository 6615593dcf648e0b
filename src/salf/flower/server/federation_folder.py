"""The folder of a federation, from which a run continues after the server has died."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock
from flwr.serverapp.strategy import Result, Strategy

from salf.errors import RunFolderError
from salf.flower.server import federation_checkpoint
from salf.flower.server.federation_record import FederationRecord
from salf.flower.server.federation_state import FederationState
from salf.flower.server.logger import log
from salf.runs import load_checkpoint, lock_folder, save_checkpoint, write_atomically


class FederationFolder:
    """A folder with one line per round in `records.jsonl`, and the last round's `checkpoint/state.safetensors`.

    Whatever process dies at any time, the folder holds the state after the last complete round. An interrupted round
    runs again.

    Args:
        path: The folder, which is created if necessary.
        patience_seconds: How long to wait for another server app that uses the folder.
    """

    def __init__(self, path: Path, patience_seconds: float = 120.0) -> None:
        self.path, self.patience_seconds = path, patience_seconds
        self._records, self._checkpoint = path / "records.jsonl", path / "checkpoint" / "state.safetensors"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Create the folder and keep other server apps out until the block ends or the process dies.

        After the SuperLink has died, its server app needs some time to notice; this method waits for it.

        Raises:
            RunFolderError: The folder cannot be created, or another app still uses it after `patience_seconds`.
        """
        try:
            self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot create the folder {self.path}: {error}; choose another folder") from error
        lock = self._lock()
        try:
            yield
        finally:
            lock.release()

    def _lock(self) -> BaseFileLock:
        """Lock the folder, with a line in the log if another app holds it."""
        try:
            return lock_folder(self.path, patience_seconds=0)
        except RunFolderError:
            log.warning("another server app uses %s; waiting for it to end", self.path)
        return lock_folder(self.path, self.patience_seconds)

    def load(self, strategy: Strategy) -> tuple[FederationState, Result] | None:
        """Return the state and the results so far, and restore the state of `strategy`; None for a new folder.

        Raises:
            RunFolderError: The folder is damaged, or another strategy or version wrote it.
        """
        if not self._checkpoint.exists():
            write_atomically(self._records, b"")
            return None
        server, attachment = load_checkpoint(self._checkpoint)
        self._keep_records(server.round)
        try:
            return federation_checkpoint.unpack(server, attachment, strategy)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RunFolderError(
                f"another strategy or version wrote the checkpoint {self._checkpoint} "
                f"({type(error).__name__}: {error}); start a new run in another folder"
            ) from error

    def save(self, state: FederationState, result: Result, strategy: Strategy, record: FederationRecord) -> None:
        """Write a round's record, then its checkpoint.

        Args:
            state: The state after the round.
            result: The results of all rounds so far.
            strategy: The wrapped strategy.
            record: The round's record.

        Raises:
            RunFolderError: The folder cannot be written.
        """
        try:
            with self._records.open("ab") as file:
                file.write(f"{record.to_json()}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(
                f"cannot write {self._records}: {error.strerror or error}; check the disk and start the app again"
            ) from error
        save_checkpoint(self._checkpoint, state.server, federation_checkpoint.pack(state, result, strategy))

    def records(self) -> list[FederationRecord]:
        """Return the records of all complete rounds, without a last line that a crash has cut short.

        Raises:
            RunFolderError: The records cannot be read, or are damaged.
        """
        try:
            lines = self._records.read_bytes().split(b"\n")[:-1]
            return [FederationRecord.from_json(line.decode()) for line in lines]
        except OSError as error:
            raise RunFolderError(
                f"cannot read {self._records}: {error.strerror or error}; check the path and its permissions"
            ) from error
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{self._records} is damaged ({error}); start a new run in another folder") from error

    def _keep_records(self, rounds: int) -> None:
        """Drop the record of a round whose checkpoint was not written."""
        kept = self.records()[:rounds]
        if len(kept) < rounds:
            raise RunFolderError(f"{self._records} lacks earlier rounds; start a new run in another folder")
        write_atomically(self._records, "".join(f"{record.to_json()}\n" for record in kept).encode())
