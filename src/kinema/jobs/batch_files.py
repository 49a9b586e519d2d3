"""The files of batches on disk: uploaded requests, and results."""

from __future__ import annotations

import contextlib
import re
import time
from typing import IO, TYPE_CHECKING

from kinema.errors import JobNotFound
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
    """The files in the folder `files` of a data folder, by id."""

    def __init__(self, files: JobFiles, reserve_gb: float) -> None:
        self._files = files
        self._folder = files.root / "files"
        self._reserve_gb = reserve_gb

    def path(self, file_id: str) -> Path:
        """Return the path of a file, which may not exist."""
        return self._folder / f"{file_id}.jsonl"

    @contextlib.contextmanager
    def create(self, file_id: str) -> Iterator[IO[bytes]]:
        """Yield a new file to write to. It appears at the end, complete, or not at all after an exception.

        Raises:
            InsufficientDisk: less than the reserve is free, or the disk is full.
        """
        self._files.check_free_space(self._reserve_gb)
        self._folder.mkdir(exist_ok=True, mode=0o700)
        with atomic_file(self.path(file_id)) as partial, partial.open("xb") as file:
            yield file
            file.flush()

    def open(self, file_id: str) -> IO[bytes]:
        """Open a file for reading.

        Raises:
            JobNotFound: it does not exist.
        """
        try:
            return self.path(file_id).open("rb")
        except FileNotFoundError:
            raise JobNotFound(f"the file {file_id!r} was deleted") from None

    def delete(self, file_id: str) -> None:
        """Delete a file if it exists."""
        self.path(file_id).unlink(missing_ok=True)

    def sweep(self, known: Collection[str]) -> None:
        """Delete files of an interrupted upload or deletion: those without a row, and partial files."""
        if not self._folder.is_dir():
            return
        oldest = time.time() - ORPHAN_SECONDS
        for path in self._folder.iterdir():
            match = _FILE_NAME.fullmatch(path.name)
            is_own = PARTIAL_FILE.fullmatch(path.name) or (match is not None and match[1] not in known)
            if is_own and path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)
