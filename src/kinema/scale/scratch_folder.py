"""Temporary folders that do not outlive their processes for long, even those that are killed."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from pathlib import Path

from kinema.jobs.job_files import try_lock

LOCK = ".lock"


class ScratchFolder:
    """A new temporary folder of this process. Those of ended processes with the same prefix are deleted first.

    A process holds a lock in its folder while it runs.
    """

    def __init__(self, prefix: str) -> None:
        _delete_abandoned(prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._lock = (self.path / LOCK).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def delete(self) -> None:
        """Delete the folder with its content."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _delete_abandoned(prefix: str) -> None:
    """Delete folders whose lock nobody holds. One without a lock file is being created, or is not ours."""
    for lock in Path(tempfile.gettempdir()).glob(f"{prefix}*/{LOCK}"):
        try:
            with lock.open("rb+") as file:
                if try_lock(file, fcntl.LOCK_EX):
                    shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # another user's, or another process deletes it
            continue
