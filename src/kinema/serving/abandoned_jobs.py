"""Jobs whose clients disconnected: the same request finds them when it is sent again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from kinema.errors import KinemaError

if TYPE_CHECKING:
    from kinema.jobs import Job, Queue

log = logging.getLogger(__name__)

CANCEL_SECONDS = 600.0


class AbandonedJobs:
    """Jobs without a waiting client, by the fingerprint of their request. They are cancelled after a while."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._fingerprints: dict[str, str] = {}  # by job id, oldest first

    def add(self, job_id: str, fingerprint: str) -> None:
        """Keep a job for a while. Call this in the event loop."""
        log.info("job %s: client disconnected; cancelled in %d s unless requested again", job_id, CANCEL_SECONDS)
        self._fingerprints[job_id] = fingerprint
        asyncio.get_running_loop().call_later(CANCEL_SECONDS, self._expire, job_id)

    def take(self, fingerprint: str) -> Job | None:
        """Remove and return a job of the same request; None if there is none or it failed. Thread-safe."""
        for job_id, other in list(self._fingerprints.items()):
            if other == fingerprint and self._fingerprints.pop(job_id, None) is not None:
                with contextlib.suppress(KinemaError):  # it was deleted in the meantime
                    job = self._queue.get(job_id)
                    if job.status != "failed":
                        return job
        return None

    def _expire(self, job_id: str) -> None:
        if self._fingerprints.pop(job_id, None) is not None:
            asyncio.get_running_loop().run_in_executor(None, self._cancel, job_id)

    def _cancel(self, job_id: str) -> None:
        with contextlib.suppress(KinemaError):
            self._queue.cancel(job_id)
