"""Jobs whose callers were cut off: who sends the same request again soon finds them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from kinema.errors import KinemaError

if TYPE_CHECKING:
    from kinema.jobs import Job, Queue

log = logging.getLogger(__name__)

KEPT_SECONDS = 600.0


class AbandonedJobs:
    """Jobs that no caller waits for any more, by the fingerprint of their request. After a while they are cancelled."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._fingerprints: dict[str, str] = {}  # by the job's id, oldest first

    def add(self, job_id: str, fingerprint: str) -> None:
        """Keep a job for a while; called in the event loop."""
        log.info("job %s: the caller is gone; it is cancelled in %d s unless asked for again", job_id, KEPT_SECONDS)
        self._fingerprints[job_id] = fingerprint
        asyncio.get_running_loop().call_later(KEPT_SECONDS, self._expire, job_id)

    def take(self, fingerprint: str) -> Job | None:
        """A job of the same request, for one caller; None where there is none, or it failed. Callable in any thread."""
        for job_id, other in list(self._fingerprints.items()):
            if other == fingerprint and self._fingerprints.pop(job_id, None) is not None:
                with contextlib.suppress(KinemaError):  # it was deleted meanwhile
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
