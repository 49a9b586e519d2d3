"""Who watches a job hears of each change, or of the latest where it is slow; no one waits for a watcher."""

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
    """Who is to be told of which job."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._told: dict[str, set[Callable[[Job | None], None]]] = {}

    @contextlib.contextmanager
    def telling(self, job_id: str, tell: Callable[[Job | None], None]) -> Iterator[None]:
        """Within this context, `tell` is called at each change, in any thread: the job, or None once it is gone."""
        with self._lock:
            self._told.setdefault(job_id, set()).add(tell)
        try:
            yield
        finally:
            with self._lock:
                self._told[job_id].discard(tell)
                if not self._told[job_id]:
                    del self._told[job_id]

    def publish(self, job_id: str, job: Job | None) -> None:
        """Tell all who watch this job."""
        with self._lock:
            tellers = list(self._told.get(job_id, ()))
        for tell in tellers:
            tell(job)

    def watched(self) -> list[str]:
        """The jobs that anyone watches."""
        with self._lock:
            return list(self._told)


class Subscription:
    """The latest of what a thread was told."""

    def __init__(self) -> None:
        self._news: Queue[Job | None] = Queue()

    def tell(self, job: Job | None) -> None:
        """Put it in."""
        self._news.put(job)

    def wait(self, seconds: float) -> Job | None:
        """The latest, as soon as there is any.

        Raises:
            TimeoutError: where there was none for so long.
        """
        try:
            latest = self._news.get(timeout=seconds)
            while not self._news.empty():
                latest = self._news.get_nowait()
        except Empty:
            raise TimeoutError from None
        return latest


class AsyncSubscription:
    """The latest of what a coroutine was told, from whatever thread; made within its loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._latest: Job | None = None

    def tell(self, job: Job | None) -> None:
        """Put it in, and wake who waits."""
        self._latest = job
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its watchers with it
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float) -> Job | None:
        """The latest, as soon as there is any.

        Raises:
            TimeoutError: where there was none for so long.
        """
        async with asyncio.timeout(seconds):
            await self._event.wait()
        self._event.clear()
        return self._latest
