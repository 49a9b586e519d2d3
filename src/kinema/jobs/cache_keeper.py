"""Keeps the copies of shared files in the data folder within KINEMA_CACHE_GB."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from kinema.errors import KinemaError
from kinema.jobs.job_files import GIGABYTE
from kinema.jobs.shared_files import SharedFiles

if TYPE_CHECKING:
    from kinema.jobs.job_files import JobFiles
    from kinema.jobs.job_table import JobTable

log = logging.getLogger(__name__)

TRIM_SECONDS = 60.0
# A copy that was used since is kept, as somebody may be about to read it.
UNUSED_SECONDS = 600.0


class CacheKeeper:
    """A thread that deletes old copies every TRIM_SECONDS; without a store it does nothing."""

    def __init__(self, files: JobFiles, table: JobTable, gigabytes: float) -> None:
        self._files = files
        self._table = table
        self._maximum = gigabytes * GIGABYTE
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kinema-cache", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        if isinstance(self._files, SharedFiles):
            self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def trim(self, unused_seconds: float = UNUSED_SECONDS) -> None:
        """Delete old copies once: those of deleted jobs, and as many of the longest unused ones as necessary."""
        if not isinstance(self._files, SharedFiles):
            return
        running = self._table.running()
        images = {image for job in running for image in (job.image, job.last_image) if image is not None}
        protected = {job.id for job in running} | images
        self._files.trim_cache(self._maximum, unused_seconds, protected, self._known)

    def _known(self, ids: list[str]) -> set[str]:
        """Return which of the ids are those of jobs."""
        return {job.id for start in range(0, len(ids), 500) for job in self._table.get_many(ids[start : start + 500])}

    def _run(self) -> None:
        while not self._closing.wait(TRIM_SECONDS):
            try:
                self.trim()
            except (KinemaError, OSError) as error:
                log.warning("the copies of videos in the data folder can't be checked: %s", error)
