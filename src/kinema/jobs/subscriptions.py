"""Subscriptions to job changes. Publishing never blocks; a slow subscriber only gets the latest state."""

from __future__ import annotations

import asyncio
import contextlib
from queue import Empty, Queue
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kinema.jobs.job import Job


class Subscriptions:
    """The subscribers of each job."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._callbacks: dict[str, set[Callable[[Job | None], None]]] = {}

    @contextlib.contextmanager
    def subscribe(self, job_id: str, callback: Callable[[Job | None], None]) -> Iterator[None]:
        """Call `callback` at each change until the context ends: with the job, or None once it is deleted.

        The callback runs in any thread.
        """
        with self._lock:
            self._callbacks.setdefault(job_id, set()).add(callback)
        try:
            yield
        finally:
            with self._lock:
                self._callbacks[job_id].discard(callback)
                if not self._callbacks[job_id]:
                    del self._callbacks[job_id]

    def publish(self, job_id: str, job: Job | None) -> None:
        """Send the new state of a job to its subscribers; None means deleted."""
        with self._lock:
            callbacks = list(self._callbacks.get(job_id, ()))
        for callback in callbacks:
            callback(job)

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs that have subscribers."""
        with self._lock:
            return list(self._callbacks)


class Subscription:
    """Inbox of a subscribing thread."""

    def __init__(self) -> None:
        self._inbox: Queue[Job | None] = Queue()

    def put(self, job: Job | None) -> None:
        """Add a state, from any thread."""
        self._inbox.put(job)

    def wait(self, seconds: float) -> Job | None:
        """Return the latest state as soon as there is one.

        Raises:
            TimeoutError: no state arrived in time.
        """
        try:
            latest = self._inbox.get(timeout=seconds)
            while not self._inbox.empty():
                latest = self._inbox.get_nowait()
        except Empty:
            raise TimeoutError from None
        return latest


class AsyncSubscription:
    """Inbox of a subscribing coroutine. Create it within the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._latest: Job | None = None

    def put(self, job: Job | None) -> None:
        """Set the latest state, from any thread, and wake the coroutine."""
        self._latest = job
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float) -> Job | None:
        """Return the latest state as soon as there is one.

        Raises:
            TimeoutError: no state arrived in time.
        """
        async with asyncio.timeout(seconds):
            await self._event.wait()
        self._event.clear()
        return self._latest
