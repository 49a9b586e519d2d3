"""The state of a server process (settings, queue, image service) with its startup, readiness and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from kinema.errors import CredentialsError, InvalidRequest, QueueUnavailable
from kinema.jobs import Queue
from kinema.media.credentials.signing_keys import trust_anchors
from kinema.media.safety_check import check_safety_package
from kinema.messages import Message
from kinema.serving.abandoned_jobs import AbandonedJobs
from kinema.serving.batch_feeder import BatchFeeder
from kinema.serving.blocked_words import read_blocked_words
from kinema.serving.body_quota import BodyQuota
from kinema.serving.image_service import ImageService
from kinema.serving.metrics import Metrics
from kinema.serving.rate_limits import PinQuota
from kinema.serving.signed_videos import open_signed_videos
from kinema.serving.webhook_sender import WebhookSender

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import FrameType

    from fastapi import FastAPI

    from kinema.jobs import Job
    from kinema.settings import Settings

log = logging.getLogger(__name__)

WORK = "kinema.serving.engine_work:ServerWork"
PROBE_SECONDS = 3.0
STORE_THREADS = 40
# A service manager sends SIGKILL after 30 s. Running jobs get the first limit; the second ends the process.
GRACE_SECONDS = 22.0
END_SECONDS = 28
_CAN_NOT_SIGN = (
    "videos can't be signed with content credentials, so none can be downloaded: the certificate has expired or can't "
    "be used; see the server's log"
)


class ServerState:
    """The state of one server process: created before the event loop runs, opened and closed in it."""

    def __init__(self, settings: Settings, work: str = WORK) -> None:
        _check_key_limits(settings)
        _check_safety(settings)
        self.settings = settings
        self.metrics = Metrics()
        self.queue = Queue(settings, work, on_finished=self._ended)
        self.abandoned = AbandonedJobs(self.queue)
        self.pins = PinQuota(500)
        self.images = ImageService(None if settings.safety == "off" else settings.safety_threshold)
        self.signed = open_signed_videos(settings)
        trust_anchors(settings)  # an error here, not at the first file to verify
        self.batches = BatchFeeder(settings, self.queue, self.images)
        self.webhooks = WebhookSender(settings, self.queue)
        self.bodies = BodyQuota(max(settings.max_body_mb, settings.max_batch_file_mb), settings.min_free_gb)
        self.stopping = asyncio.Event()
        self._stopped_at: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prober = ThreadPoolExecutor(1, "kinema-probe")
        self._probe: asyncio.Future[bool] | None = None
        self._database_error: str | None = None  # of the latest probe; each error is logged once
        self._signing_error: str | None = None  # likewise

    async def open(self) -> None:
        """Install the signal handlers and start running jobs."""
        self._loop = asyncio.get_running_loop()
        self._handle_signals()
        if self.settings.store is not None:  # a store that does not respond must not use up all threads
            self._loop.set_default_executor(ThreadPoolExecutor(STORE_THREADS, "kinema-store"))
        await asyncio.to_thread(self.queue.open)
        self.batches.start()
        self.webhooks.start()
        # Imported modules stay in memory: scanning them in a garbage collection would pause all requests for 0.2 s.
        gc.collect()
        gc.freeze()

    async def close(self) -> None:
        """Accept no more jobs; finish running jobs within the rest of the grace period, or requeue them."""
        self.stopping.set()
        self.images.close()
        if self.signed is not None:
            self.signed.close()
        await asyncio.gather(asyncio.to_thread(self.batches.close), asyncio.to_thread(self.webhooks.close))
        spent = 0.0 if self._stopped_at is None else time.monotonic() - self._stopped_at
        await asyncio.to_thread(self.queue.close, max(0.0, GRACE_SECONDS - spent))

    async def ready(self) -> bool:
        """Return whether jobs are run, videos can be signed, and database and store respond in PROBE_SECONDS.

        Jobs may be run by another process; if this one runs them, all its workers must be ready.
        """
        runs_jobs = self.queue.ready and self.queue.workers_ready
        if self.stopping.is_set() or not (runs_jobs or self.queue.is_standby):
            return False
        if self._probe is None or self._probe.done():  # a database that hangs blocks only one thread
            self._probe = asyncio.get_running_loop().run_in_executor(self._prober, self._check_dependencies)
        await asyncio.wait({self._probe}, timeout=PROBE_SECONDS)
        return self._probe.done() and self._probe.result()

    @property
    def problems(self) -> list[str]:
        """Why the server is not ready; contains nothing confidential."""
        database = ["the queue's database is unavailable, deleted or damaged; see the server's log"]
        return [
            *self.queue.problems,
            *(database if self._database_error else []),
            *([_CAN_NOT_SIGN] if self._signing_error else []),
        ]

    def _check_dependencies(self) -> bool:
        return all([self._check_signing(), self._check_database()])  # both, so that all problems are named

    def _check_signing(self) -> bool:
        if self.signed is None:
            return True
        try:
            self.signed.check()
        except (CredentialsError, InvalidRequest) as error:
            if str(error) != self._signing_error:
                log.warning("not ready: %s", error)
            self._signing_error = str(error)
            return False
        self._signing_error = None
        return True

    def _check_database(self) -> bool:
        try:
            self.queue.check_database()
        except QueueUnavailable as error:
            if str(error) != self._database_error:
                log.warning("not ready: %s", error)
            self._database_error = str(error)
            return False
        self._database_error = None
        try:
            self.queue.check_store()
        except QueueUnavailable:  # it is in the queue's problems
            return False
        return True

    def check_open(self) -> None:
        """Reject new jobs during shutdown.

        Raises:
            QueueUnavailable: the server is shutting down.
        """
        if self.stopping.is_set():
            raise QueueUnavailable(Message("server_ending", "the server is shutting down; try again after it restarts"))

    async def finished(self, job: Job) -> Job | None:
        """Wait for a job and return it when it is finished; return None if it is deleted.

        Raises:
            QueueUnavailable: the server shuts down first; the job continues after the restart.
        """
        latest: Job | None = None
        async for latest in self.subscribe(job.id):
            if latest.finished:
                return latest
        if self.stopping.is_set():
            raise QueueUnavailable(
                Message(
                    "server_ending_job",
                    "the server is shutting down; {job} continues after the restart: request it then",
                    job=job.id,
                )
            )
        return None

    async def subscribe(self, job_id: str) -> AsyncIterator[Job]:
        """Yield the job at each change, as `Queue.subscribe_async`, until the server shuts down."""
        changes = self.queue.subscribe_async(job_id).__aiter__()
        shutdown = asyncio.ensure_future(self.stopping.wait())
        next_change: asyncio.Future[Job] | None = None
        try:
            while not self.stopping.is_set():
                next_change = asyncio.ensure_future(changes.__anext__())
                await asyncio.wait({next_change, shutdown}, return_when=asyncio.FIRST_COMPLETED)
                if not next_change.done():
                    return
                try:
                    job = next_change.result()
                except StopAsyncIteration:
                    return
                yield job
        finally:
            shutdown.cancel()
            if next_change is not None and not next_change.done():
                next_change.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                    await next_change

    def _ended(self, job: Job) -> None:
        self.metrics.observe(job)
        self.batches.wake()
        self.webhooks.wake()

    def _handle_signals(self) -> None:
        """Note signals before the HTTP server: it waits for open connections, so event streams must end first."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            previous = signal.getsignal(number)

            def handle(received: int, frame: FrameType | None, previous: object = previous) -> None:
                self._begin_shutdown()
                if callable(previous):
                    previous(received, frame)

            signal.signal(number, handle)

    def _begin_shutdown(self) -> None:
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
            # SIGALRM then ends the process, even if a thread hangs. The next start runs unfinished jobs again.
            signal.alarm(END_SECONDS)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stopping.set)


def _check_key_limits(settings: Settings) -> None:
    """Check that limits of API keys are only set with keys.

    Raises:
        InvalidRequest: a limit is set, but no key.
    """
    for name in ("key_requests_per_minute", "key_waiting_jobs", "key_work"):
        if getattr(settings, name) is not None and not settings.api_keys:
            raise InvalidRequest(
                f"KINEMA_{name.upper()} limits API keys, but KINEMA_API_KEYS is not set; set both", name
            )


def _check_safety(settings: Settings) -> None:
    """Check that the safety check and the blocked words can be used.

    Raises:
        InvalidRequest: a package is not installed, a file can't be used, or the nodes of a cluster would not know the
            setting: they get those of the environment only.
    """
    if settings.safety != "off":
        check_safety_package()
        names = ("safety", "safety_threshold") if "safety_threshold" in settings.model_fields_set else ("safety",)
        for name in names if settings.ray_address is not None else ():
            if not os.environ.get(variable := f"KINEMA_{name.upper()}"):
                raise InvalidRequest(
                    f"{name} is set in kinema.toml, which the nodes of the Ray cluster do not read; set {variable} in "
                    "the environment",
                    name,
                )
    if settings.blocked_words is not None:
        read_blocked_words(settings.blocked_words)


def trust_summary(settings: Settings) -> str:
    """Return what a server does about the content of videos and what they say about themselves, for its log."""
    safety = settings.safety if settings.safety == "off" else f"{settings.safety} (above {settings.safety_threshold:g})"
    blocked = "none"
    if settings.blocked_words is not None:
        words = read_blocked_words(settings.blocked_words)
        blocked = f"{len(words.phrases) + len(words.parts):,}"
    return (
        f"content credentials: {settings.credentials or 'on'}, invisible watermark: {settings.watermark or 'on'}, "
        f"safety check: {safety}, blocked words: {blocked}"
    )


def server_state(app: FastAPI) -> ServerState:
    """Return the state of the server that runs this app.

    Raises:
        QueueUnavailable: the server is still starting.
    """
    state: ServerState | None = getattr(app.state, "server", None)
    if state is None:
        raise QueueUnavailable(Message("server_starting", "the server is starting; try again in a moment"))
    return state
