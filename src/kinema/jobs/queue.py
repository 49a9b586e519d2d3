"""The queue of jobs: what every face of the server calls, from any thread."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa

from kinema.errors import InvalidRequest, JobUnfinished, KeyReused, QueueFull, QueueUnavailable
from kinema.jobs.binding import bind
from kinema.jobs.job import PRODUCTS, Failure, Job, JobPage
from kinema.jobs.job_files import JobFiles
from kinema.jobs.job_table import JobTable, KeyTaken
from kinema.jobs.scheduler import DAY, PREVIEW, Scheduler, drop_image, remove, runs_elsewhere
from kinema.jobs.sqlite_file import SqliteFile
from kinema.jobs.subscriptions import AsyncSubscription, Subscription, Subscriptions
from kinema.jobs.worker_pool import devices_for
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from kinema.settings import Settings
    from kinema.values import VideoRequest

log = logging.getLogger(__name__)

CANCELLED = Failure("cancelled", "it was cancelled")
MAX_PRIORITY = 1000
MAX_KEY = 255
MAX_PAGE = 1000
# Where this process doesn't run the jobs itself, it looks at those that are watched so often.
WATCH_SECONDS = 1.0


class Queue:
    """Jobs that outlive this process: they, their stills and results lie in the data folder and the database.

    All methods may be called from any thread and take a few milliseconds; within an event loop, call them by
    `asyncio.to_thread`, and watch by `watch_async`. Only one process runs a database's jobs: another one takes over
    when the first has ended. Until then it can do all else, but where its data folder is another it can't submit.

        with Queue(settings, work="kinema.serving.engine_work:work") as queue:
            job = queue.submit(request, still=Path("rocket.png").read_bytes())
            for job in queue.watch(job.id):
                print(job.status, job.queue_position, job.stage, job.step, job.total, job.eta)
            video = queue.result(job.id)

    Args:
        settings: Where everything lies, how much is kept, and how many workers there are.
        work: Where the work (`kinema.jobs.job.Work`) can be imported from, as "package.module:attribute". None
            only looks on, and lets other processes run the jobs.
        devices: The device of each worker; None takes those of the settings.
        ended: Is told, in some thread, of each job that was run here and is finished.

    Raises:
        QueueUnavailable: where the data folder or the database can't be used.
        InvalidRequest: where they do not belong together.
    """

    def __init__(
        self,
        settings: Settings,
        work: str | None = None,
        *,
        devices: Sequence[str] | None = None,
        ended: Callable[[Job], None] | None = None,
    ) -> None:
        self._settings = settings
        self._files = JobFiles(settings.data_dir)
        self._files.make_private()
        given = settings.database_url
        url = given.get_secret_value() if given else f"sqlite:///{self._files.root / 'jobs.sqlite3'}"
        self._store = JobTable(url)
        try:
            bind(self._files, self._store)
            workflows, file = _workflows(url)
        except BaseException:
            self._store.close()
            raise
        self._store.beside = file
        self._watchers = Subscriptions()
        self._closed = False
        self._was_full = False
        self._runner: Scheduler | None = None
        if work is not None:
            devices = devices_for(settings) if devices is None else devices
            self._runner = Scheduler(
                work, devices, settings, self._store, self._files, self._watchers, workflows, ended
            )

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(grace=0)

    def open(self) -> None:
        """Begin to run jobs, those first that were running when the last process ended."""
        if self._runner is not None:
            self._runner.start()

    def close(self, grace: float = 25.0) -> None:
        """Take no more jobs; wait `grace` seconds for running ones, then put them back for the next opening."""
        if not self._closed:
            self._closed = True
            if self._runner is not None:
                self._runner.close(grace)
            self._store.close()

    @property
    def ready(self) -> bool:
        """Whether this process runs the jobs."""
        return self._runner is not None and self._runner.ready.is_set() and not self._closed

    def check_database(self) -> None:
        """Ask the database whether it is there, the one that was opened, and whole; this may take seconds.

        Raises:
            QueueUnavailable: saying what is wrong with it.
        """
        self._store.check()

    @property
    def unknown_files(self) -> int:
        """How many entries of the data folder are in no record of the database; they are kept."""
        return 0 if self._runner is None else len(self._runner.unknown)

    @property
    def workers(self) -> tuple[int | None, ...]:
        """The process of each worker, None for one that is not ready."""
        return () if self._runner is None else tuple(worker.pid for worker in self._runner.pool.workers)

    @property
    def problems(self) -> tuple[str, ...]:
        """Why this process runs no jobs, or fewer at once than it has workers for; none where all is well."""
        return () if self._runner is None else self._runner.problems()

    def submit(
        self,
        request: VideoRequest,
        *,
        image: bytes | None = None,
        title: str | None = None,
        priority: int = 0,
        pinned: bool = False,
        idempotency_key: str | None = None,
        fingerprint: str | None = None,
    ) -> Job:
        """Accept a job: once this returns, it will be done.

        Args:
            request: What to make. Its prompt draws the still; with a still given, it has none.
            image: The picture's bytes, as they came, already found to be usable.
            title: What people will know the job by; the request's prompt if None.
            priority: Each step puts it ahead of those that came up to a minute before it: -1000 to 1000.
            pinned: Never to expire.
            idempotency_key: The same key gives the same job, however often it comes.
            fingerprint: What was asked, where request, still and title don't tell: a seed that was drawn for the
                caller differs each time. The same key with another fingerprint is refused.

        Raises:
            InvalidRequest: neither prompt nor still, or both; a priority or key out of range.
            QueueFull: as many jobs wait as may.
            InsufficientDisk: less is free than must be.
            KeyReused: the key came before, with something else.
            QueueUnavailable: the queue is closing, its database does not answer, or a process with another data folder
                runs the database's jobs.
        """
        self._check(request, image, priority, idempotency_key)
        asked = fingerprint or _fingerprint(request, image, title)
        if idempotency_key is not None and (known := self._known(idempotency_key, asked)):
            return known
        self._files.check_room(self._settings.min_free_gb)
        if not self.ready and (elsewhere := runs_elsewhere(self._store, self._files)):
            raise elsewhere
        if self._was_full and self._store.waiting() >= self._settings.queue_size:  # before anything is written
            raise self._full()
        values: dict[str, Any] = {
            "id": f"video_{secrets.token_hex(16)}",
            "title": request.prompt if title is None else title,
            "priority": priority,
            "pinned": pinned,
            "created_at": time.time(),
        }
        stored = {
            "model": request.model,
            "request": request.model_dump_json(),
            "idempotency_key": idempotency_key,
            "fingerprint": asked,
        }
        try:
            with self._files.adding(image) as values["image"]:
                place = self._store.add(values | stored, self._settings.queue_size)
        except KeyTaken:  # the same request twice at once
            assert idempotency_key is not None, "keys are all that can be taken"
            return self._known(idempotency_key, asked) or self.submit(
                request, image=image, title=title, priority=priority, pinned=pinned,
                idempotency_key=idempotency_key, fingerprint=fingerprint,
            )  # fmt: skip
        self._was_full = place is None
        if place is None:
            drop_image(self._store, self._files, values["image"])
            raise self._full()
        self._changed()
        return Job(status="queued", request=request, queue_position=place, **values)

    def get(self, job_id: str) -> Job:
        """A job as it is now.

        Raises:
            JobNotFound: where there is none with this id.
        """
        return self._as_it_is(self._store.get(job_id))

    def list(self, *, after: str | None = None, limit: int = 20, newest_first: bool = True) -> JobPage:
        """Jobs by their time of coming; for the next page, those `after` the last one's id.

        Raises:
            JobNotFound: where there is no job with the id `after`.
            InvalidRequest: for a limit other than 1 to 1000.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit {limit} is out of range: 1 to {MAX_PAGE}", "limit")
        page = self._store.page(after, limit, newest_first=newest_first)
        return JobPage(tuple(self._as_it_is(job) for job in page.jobs), page.has_more)

    def waiting(self) -> int:
        """How many jobs are queued."""
        return self._store.waiting()

    def running(self) -> int:
        """How many jobs are being run here."""
        return 0 if self._runner is None else len(self._runner.running())

    def watch(self, job_id: str) -> Iterator[Job]:
        """The job now, and again whenever it changes, until it is finished or deleted.

        Raises:
            JobNotFound: where there is none with this id.
        """
        inbox = Subscription()
        with self._watchers.telling(job_id, inbox.tell):
            job: Job | None = self.get(job_id)
            while job is not None:
                yield job
                if job.finished:
                    return
                job = self._next(job, inbox)

    def _next(self, before: Job, inbox: Subscription) -> Job | None:
        while True:
            try:
                return inbox.wait(WATCH_SECONDS)
            except TimeoutError:
                if (job := self._changed_elsewhere(before)) is not before:
                    return job

    async def watch_async(self, job_id: str) -> AsyncIterator[Job]:
        """As `watch`, for an event loop: a hundred watchers cost little more than one."""
        import asyncio

        inbox = AsyncSubscription()
        with self._watchers.telling(job_id, inbox.tell):
            job: Job | None = await asyncio.to_thread(self.get, job_id)
            while job is not None:
                yield job
                if job.finished:
                    return
                before = job
                while job is before:
                    try:
                        job = await inbox.wait(WATCH_SECONDS)
                    except TimeoutError:
                        if not self.ready:
                            job = await asyncio.to_thread(self._changed_elsewhere, before)

    def cancel(self, job_id: str) -> Job:
        """A queued or running job fails as "cancelled", and its worker is free within a step; a finished one stays.

        Raises:
            JobNotFound: where there is none with this id.
        """
        before = self._store.get(job_id)
        if self._store.fail(job_id, CANCELLED, self._settings.keep_days * DAY):
            log.info("job %s is cancelled", job_id)
            if before.status == "queued":  # parts of it may be made: it was in progress before
                self._files.drop_job(job_id)
            self._stop(job_id)
        return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Cancel a job if it is not finished, and delete it with all its files, also a pinned one.

        Raises:
            JobNotFound: where there is none with this id.
        """
        if not remove(self._store, self._files, job_id):
            self._store.get(job_id)  # says that there is none
        log.info("job %s is deleted", job_id)
        self._stop(job_id)
        self._watchers.publish(job_id, None)

    def pin(self, job_id: str, *, pinned: bool = True) -> Job:
        """Keep a job for good, or let it expire KINEMA_KEEP_DAYS from now.

        Raises:
            JobNotFound: where there is none with this id.
        """
        self._store.pin(job_id, self._settings.keep_days * DAY, pinned=pinned)
        return self._renewed(job_id)

    def rename(self, job_id: str, title: str) -> Job:
        """Give a job another title.

        Raises:
            JobNotFound: where there is none with this id.
        """
        self._store.rename(job_id, title)
        return self._renewed(job_id)

    def result(self, job_id: str) -> Path:
        """The video's file.

        Raises:
            JobNotFound: where there is no job with this id.
            JobUnfinished: where it has no video, with the reason.
        """
        job = self.get(job_id)
        if job.status == "failed":
            raise JobUnfinished(f"job {job_id} has no video: it failed{f' ({job.error.code})' if job.error else ''}")
        if job.status != "completed":
            raise JobUnfinished(
                f"job {job_id} is {job.status.replace('_', ' ')}; its video is there when it is completed"
            )
        return self._files.job(job_id) / PRODUCTS["video"]

    def folder(self, job_id: str) -> Path:
        """A completed job's folder, for what is made from its video; it goes when the job does.

        Raises:
            JobNotFound, JobUnfinished: as `result`.
        """
        return self.result(job_id).parent

    def image(self, job_id: str) -> Path | None:
        """The file of the still that a job is made from, None until it is drawn.

        Raises:
            JobNotFound: where there is no job with this id.
        """
        sha256 = self.get(job_id).image
        return None if sha256 is None else self._files.image(sha256)

    def preview(self, job_id: str) -> bytes | None:
        """The latest preview of a running job, as a JPEG, None where there is none.

        Raises:
            JobNotFound: where there is no job with this id.
        """
        if self.get(job_id).finished:
            return None
        try:
            return (self._files.job(job_id) / PREVIEW).read_bytes()
        except FileNotFoundError:
            return None

    def estimate(self, request: VideoRequest) -> float | None:
        """Seconds that a request would take here, without waiting for its turn; None while its model is new here."""
        if self._runner is None:
            return None
        return self._runner.speeds.seconds(request, text_to_image=request.prompt is not None)

    def _check(self, request: VideoRequest, image: bytes | None, priority: int, key: str | None) -> None:
        if self._closed:
            raise QueueUnavailable(Message("queue_closing", "the queue is closing; try again when the server is back"))
        if (image is None) == (request.prompt is None):
            what = "neither a still nor a prompt is" if image is None else "a still and a prompt are both"
            raise InvalidRequest(f"{what} given: give one of them", "prompt")
        if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            raise InvalidRequest(f"priority {priority} is out of range: {-MAX_PRIORITY} to {MAX_PRIORITY}", "priority")
        if key is not None and not 1 <= len(key) <= MAX_KEY:
            raise InvalidRequest(f"an idempotency key has 1 to {MAX_KEY} characters, not {len(key)}", "idempotency_key")

    def _known(self, key: str, asked: str) -> Job | None:
        """The job that this key gave before."""
        found = self._store.by_key(key)
        if found is None:
            return None
        job, fingerprint = found
        if fingerprint != asked:
            raise KeyReused(f"the idempotency key {key!r} came before with another request; give this one its own")
        return self._as_it_is(job)

    def _full(self) -> QueueFull:
        """The refusal, with the time until a running job should have ended, and made room."""
        left = [job.eta for job in self._runner.running() if job.eta is not None] if self._runner is not None else []
        recent = self._store.latest_completed(5)
        spans = [job.completed_at - job.started_at for job in recent if job.completed_at and job.started_at]
        mean = sum(spans) / len(spans) if spans else 30.0
        wait = max(1.0, min(left, default=mean))
        return QueueFull(
            Message(
                "queue_full",
                "{most} jobs are waiting, and no more may (KINEMA_QUEUE_SIZE); try again in {wait:.0f} seconds",
                most=self._settings.queue_size,
                wait=wait,
            ),
            wait,
        )

    def _changed(self) -> None:
        if self._runner is not None:
            self._runner.changed()

    def _stop(self, job_id: str) -> None:
        """A job is no longer wanted: tell its worker, the next in the queue and who watches."""
        if self._runner is not None:
            self._runner.cancel(job_id)
        self._changed()
        found = self._store.some([job_id])
        if found:
            self._watchers.publish(job_id, found[0])

    def _renewed(self, job_id: str) -> Job:
        """A job whose title or pin has changed, told to who watches it."""
        job = self._store.get(job_id)
        if self._runner is not None:
            self._runner.renew(job)
        job = self._as_it_is(job)
        self._watchers.publish(job_id, job)
        return job

    def _as_it_is(self, job: Job) -> Job:
        return job if self._runner is None else self._runner.as_it_is(job)

    def _changed_elsewhere(self, before: Job) -> Job | None:
        """A job that another process runs: as it is now, None where it is gone, itself where nothing changed."""
        if self.ready:
            return before
        found = self._store.some([before.id])
        return None if not found else before if found[0] == before else found[0]


def _fingerprint(request: VideoRequest, image: bytes | None, title: str | None) -> str:
    parts = (request.model_dump_json().encode(), b"" if image is None else image, (title or "").encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _workflows(url: str) -> tuple[str, SqliteFile | None]:
    """DBOS's database: a second file, so that the table of jobs never waits; in PostgreSQL it has its own schema."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return url, None
    beside = parsed.set(database=f"{parsed.database}.workflows")
    return beside.render_as_string(hide_password=False), SqliteFile(beside)  # which is private from the beginning
