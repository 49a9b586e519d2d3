"""What the faces share while a server runs: its settings, its queue, and whether it is about to end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from kinema.errors import QueueUnavailable
from kinema.jobs import Queue
from kinema.messages import Message
from kinema.serving.abandoned_jobs import AbandonedJobs
from kinema.serving.body_quota import BodyQuota
from kinema.serving.image_service import ImageService
from kinema.serving.metrics import Metrics
from kinema.serving.rate_limits import Pins

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import FrameType

    from fastapi import FastAPI

    from kinema.jobs import Job
    from kinema.settings import Settings

log = logging.getLogger(__name__)

WORK = "kinema.serving.engine_work:EngineWork"
PROBE_SECONDS = 3.0
# Of the 30 that a service manager gives: for running jobs, and until the process ends whatever it is doing.
GRACE_SECONDS = 22.0
END_SECONDS = 28


class ServerState:
    """One server process. Made before the event loop runs, opened and closed within it."""

    def __init__(self, settings: Settings, work: str = WORK) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.queue = Queue(settings, work, ended=self._ended)
        self.abandoned = AbandonedJobs(self.queue)
        self.pins = Pins(500)
        self.images = ImageService()
        self.bodies = BodyQuota(settings.max_body_mb, settings.min_free_gb)
        self.stopping = asyncio.Event()
        self._stopped_at: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prober = ThreadPoolExecutor(1, "kinema-probe")
        self._probe: asyncio.Future[bool] | None = None
        self._fault: str | None = None  # what the latest probe found, so that it is logged once

    async def open(self) -> None:
        """Begin to run jobs, and hear of signals."""
        self._loop = asyncio.get_running_loop()
        self._listen_to_signals()
        await asyncio.to_thread(self.queue.open)
        # What is imported by now stays: looking it through for garbage would hold up every request for 0.2 s.
        gc.collect()
        gc.freeze()

    async def close(self) -> None:
        """Take no more jobs; finish the running ones within what is left since the signal, or put them back."""
        self.stopping.set()
        self.images.close()
        spent = 0.0 if self._stopped_at is None else time.monotonic() - self._stopped_at
        await asyncio.to_thread(self.queue.close, max(0.0, GRACE_SECONDS - spent))

    async def ready(self) -> bool:
        """Whether the queue is open, every worker has what it needs, and the database answers, within PROBE_SECONDS."""
        if not self.queue.ready or self.stopping.is_set() or None in self.queue.workers:
            return False
        if self._probe is None or self._probe.done():  # a database that hangs holds one thread, whoever asks
            self._probe = asyncio.get_running_loop().run_in_executor(self._prober, self._probe_database)
        await asyncio.wait({self._probe}, timeout=PROBE_SECONDS)
        return self._probe.done() and self._probe.result()

    @property
    def problems(self) -> list[str]:
        """Why the server is not ready, for anyone to read."""
        database = ["the queue's database is away, removed or damaged; the log says what was found"]
        return [*self.queue.problems, *(database if self._fault else [])]

    def _probe_database(self) -> bool:
        try:
            self.queue.check_database()
        except QueueUnavailable as error:
            if str(error) != self._fault:
                log.warning("not ready: %s", error)
            self._fault = str(error)
            return False
        self._fault = None
        return True

    def check_open(self) -> None:
        """Refuse new jobs once the server is about to end.

        Raises:
            QueueUnavailable: saying so.
        """
        if self.stopping.is_set():
            raise QueueUnavailable(Message("server_ending", "the server is ending; try again when it is back"))

    async def finished(self, job: Job) -> Job | None:
        """The job once it is finished; None where it was deleted.

        Raises:
            QueueUnavailable: where the server ends before that; the job goes on with the next start.
        """
        latest: Job | None = None
        async for latest in self.watch(job.id):
            if latest.finished:
                return latest
        if self.stopping.is_set():
            raise QueueUnavailable(
                Message(
                    "server_ending_job",
                    "the server is ending; {job} goes on when it is back: ask for it then",
                    job=job.id,
                )
            )
        return None

    async def watch(self, job_id: str) -> AsyncIterator[Job]:
        """As `Queue.watch_async`, until the server is about to end."""
        changes = self.queue.watch_async(job_id).__aiter__()
        ending = asyncio.ensure_future(self.stopping.wait())
        following: asyncio.Future[Job] | None = None
        try:
            while not self.stopping.is_set():
                following = asyncio.ensure_future(changes.__anext__())
                await asyncio.wait({following, ending}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    return
                try:
                    job = following.result()
                except StopAsyncIteration:
                    return
                yield job
        finally:
            ending.cancel()
            if following is not None and not following.done():
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                    await following

    def _ended(self, job: Job) -> None:
        self.metrics.observe(job)

    def _listen_to_signals(self) -> None:
        """Know of the end before the HTTP server does, which waits for open connections: those that watch must end."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)

            def hear(got: int, frame: FrameType | None, before: object = before) -> None:
                self._begin_to_stop()
                if callable(before):
                    before(got, frame)

            signal.signal(number, hear)

    def _begin_to_stop(self) -> None:
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
            # The kernel ends the process then, even where a thread never comes back. What is lost, a start makes again.
            signal.alarm(END_SECONDS)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stopping.set)


def server_state(app: FastAPI) -> ServerState:
    """The server that this app belongs to.

    Raises:
        QueueUnavailable: where it is not there yet.
    """
    state: ServerState | None = getattr(app.state, "server", None)
    if state is None:
        raise QueueUnavailable(Message("server_starting", "the server is starting; try again in a moment"))
    return state
