"""The files of batches: uploaded requests, and results."""

from __future__ import annotations

import contextlib
import re
import time
from typing import IO, TYPE_CHECKING

from kinema.errors import FileNotFound
from kinema.jobs.job_files import atomic_file
from kinema.partial_files import PATTERN as PARTIAL_FILE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from kinema.jobs.job_files import JobFiles

_FILE_NAME = re.compile(r"(file-[0-9a-f]{32})\.jsonl")
# A file without a row may be that of an upload that is not complete yet.
ORPHAN_SECONDS = 3600.0


class BatchFiles:
    """The files of batches, by id: in the folder `files` of a data folder, or in the store of several servers."""

    def __init__(self, files: JobFiles, reserve_gb: float) -> None:
        self._files = files
        self._reserve_gb = reserve_gb

    def find(self, file_id: str) -> Path:
        """Return the path of a file, which may not exist. It may have to be fetched from the store.

        Raises:
            QueueUnavailable: the store does not answer.
        """
        return self._files.find_batch_file(_name(file_id))

    @contextlib.contextmanager
    def create(self, file_id: str) -> Iterator[IO[bytes]]:
        """Yield a new file to write to. It appears at the end, complete, or not at all after an exception.

        Raises:
            InsufficientDisk: less than the reserve is free, or the disk is full.
            QueueUnavailable: the store does not answer.
        """
        self._files.check_free_space(self._reserve_gb)
        folder = self._files.batch_files
        folder.mkdir(exist_ok=True, mode=0o700)
        with atomic_file(folder / _name(file_id)) as partial, partial.open("xb") as file:
            yield file
            file.flush()
        self._files.publish_batch_file(_name(file_id))

    def open(self, file_id: str) -> IO[bytes]:
        """Open a file for reading.

        Raises:
            FileNotFound: it does not exist.
            QueueUnavailable: the store does not answer.
        """
        try:
            return self.find(file_id).open("rb")
        except FileNotFoundError:
            raise FileNotFound(f"the file {file_id!r} was deleted") from None

    def delete(self, file_id: str) -> None:
        """Delete a file if it exists.

        Raises:
            QueueUnavailable: the store does not answer.
        """
        self._files.delete_batch_file(_name(file_id))

    def sweep(self, known: Collection[str]) -> None:
        """Delete files of an interrupted upload or deletion: those without a row, and partial files."""
        oldest = time.time() - ORPHAN_SECONDS
        for name, written_at in self._files.list_batch_files():
            match = _FILE_NAME.fullmatch(name)
            is_own = PARTIAL_FILE.fullmatch(name) or (match is not None and match[1] not in known)
            if is_own and written_at < oldest:
                self._files.delete_batch_file(name)


def _name(file_id: str) -> str:
    return f"{file_id}.jsonl"
