"""The job queue: the interface that the server uses, callable from any thread."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import sqlalchemy as sa

from kinema.errors import (
    InvalidRequest,
    JobUnfinished,
    QueueUnavailable,
)
from kinema.jobs.batch_files import BatchFiles
from kinema.jobs.batch_table import BatchTable
from kinema.jobs.binding import bind, bind_store, check_no_store
from kinema.jobs.cache_keeper import CacheKeeper
from kinema.jobs.cluster import check_installed
from kinema.jobs.deletion import DAY, remove_job
from kinema.jobs.eta import JobSize
from kinema.jobs.file_table import FileTable
from kinema.jobs.job import PART_FILES, Failure, Job, JobPage
from kinema.jobs.job_files import JobFiles
from kinema.jobs.job_table import JobTable
from kinema.jobs.job_traces import JobTraces
from kinema.jobs.job_updates import JobUpdates
from kinema.jobs.queue_database import QueueDatabase
from kinema.jobs.scheduler import Scheduler
from kinema.jobs.scheduler_lock import scheduled_elsewhere
from kinema.jobs.shared_files import SharedFiles, open_store
from kinema.jobs.sqlite_file import SqliteFile
from kinema.jobs.submitter import JobSubmitter
from kinema.jobs.subscriptions import Subscriptions
from kinema.jobs.webhook_table import WebhookTable
from kinema.jobs.worker_devices import devices_for
from kinema.jobs.worker_state import PoolState
from kinema.messages import Message
from kinema.values import Workload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from kinema.jobs.new_job import NewJob
    from kinema.jobs.worker_state import WorkerState
    from kinema.settings import Settings
    from kinema.values import VideoRequest

log = logging.getLogger(__name__)

CANCELLED = Failure("cancelled", "the job was cancelled")
MAX_PAGE = 1000


class Queue:
    """A durable job queue: jobs are stored in the database, images and videos in the data folder or in a store.

    All methods are thread-safe and take a few milliseconds. In an event loop, call them with `asyncio.to_thread`, and
    use `subscribe_async`. One process at a time runs a database's jobs; another takes over when it ends, or within 10
    seconds if it is frozen or cut off (PostgreSQL). Meanwhile the others can do everything else, but can only submit
    jobs if they have the same data folder or a store.

        with Queue(settings, work="kinema.serving.engine_work:EngineWork") as queue:
            job = queue.submit(NewJob(request, image=Path("rocket.png").read_bytes()))
            for job in queue.subscribe(job.id):
                print(job.status, job.queue_position, job.stage, job.step, job.total, job.eta)
            video = queue.result(job.id)

    Args:
        settings: Data folder, database, limits and number of workers.
        work: Import path of the work (`kinema.jobs.job.Work`), as "package.module:attribute". None runs no jobs in
            this process.
        devices: The device of each worker; None uses the settings.
        on_finished: Called, in any thread, with each job that this process ran and that is finished.

    Raises:
        QueueUnavailable: the data folder or the database can't be used.
        InvalidRequest: the data folder and the database do not belong together, or there are too few GPUs, or ray
            is not installed.
    """

    def __init__(
        self,
        settings: Settings,
        work: str | None = None,
        *,
        devices: Sequence[str] | None = None,
        on_finished: Callable[[Job], None] | None = None,
    ) -> None:
        if work is not None and devices is None:
            if settings.ray_address is None:
                devices = devices_for(settings)
            else:
                check_installed()
                devices = ()
        self._settings = settings
        self._files = JobFiles(settings.data_dir)
        if settings.store is not None:
            self._files = SharedFiles(settings.data_dir, open_store(settings.store))
        self._files.make_private()
        database_url = settings.database_url
        url = database_url.get_secret_value() if database_url else f"sqlite:///{self._files.root / 'jobs.sqlite3'}"
        self._database = QueueDatabase(url)
        self._table = JobTable(self._database)
        try:
            bind(self._files, self._table)
            if isinstance(self._files, SharedFiles):
                bind_store(self._files, self._files.url, self._table)
            else:
                check_no_store(self._database)
            workflow_url, workflow_file = _workflow_database(url)
        except BaseException:
            self._database.close()
            raise
        self._database.workflow_file = workflow_file
        self.file_table = FileTable(self._database, settings.keep_days * DAY)
        self.batches = BatchTable(self._database, settings.keep_days * DAY)
        self.webhooks = WebhookTable(self._database)
        self.batch_files = BatchFiles(self._files, settings.min_free_gb)
        self._subscriptions = Subscriptions()
        self._traces = JobTraces()
        self._is_closed = False
        self._scheduler: Scheduler | None = None
        self._cache_keeper = CacheKeeper(self._files, self._table, settings.cache_gb)
        if work is not None:
            assert devices is not None, "chosen above"
            self._scheduler = Scheduler(
                work, devices, settings, self._table, self._files, self._subscriptions, self._traces, workflow_url,
                on_finished,
            )  # fmt: skip
        self._submitter = JobSubmitter(settings, self._table, self._files, self._traces, self._scheduler)
        self._updates = JobUpdates(self._table, self._subscriptions, self._scheduler, lambda: self.ready)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(grace=0)

    def open(self) -> None:
        """Start to run jobs. Jobs that were running when the last process ended come first."""
        self._cache_keeper.start()
        self._updates.open()
        if self._scheduler is not None:
            self._scheduler.start()

    def close(self, grace: float = 25.0) -> None:
        """Start no more jobs, wait up to `grace` seconds for running ones, and requeue the rest."""
        if not self._is_closed:
            self._is_closed = True
            if self._scheduler is not None:
                self._scheduler.close(grace)
            self._updates.close()
            self._cache_keeper.close()
            self._files.close()
            self._database.close()
            self._traces.close()

    @property
    def ready(self) -> bool:
        """Whether this process runs the jobs."""
        return self._scheduler is not None and self._scheduler.ready.is_set() and not self._is_closed

    @property
    def is_standby(self) -> bool:
        """Whether another process runs the jobs, and this one can do everything else and take over."""
        return self._scheduler is not None and self._scheduler.is_standby and not self._is_closed

    def check_data_folder(self) -> None:
        """Check that files in this process's data folder are available where the jobs run.

        Raises:
            QueueUnavailable: a process with another data folder runs the database's jobs.
        """
        if not self.ready and (error := scheduled_elsewhere(self._database, self._files)):
            raise error

    def check_database(self) -> None:
        """Check that the database answers, is the one that was opened, and is not damaged. May take seconds.

        Raises:
            QueueUnavailable: the check failed.
        """
        self._database.check()

    def check_store(self) -> None:
        """Check that the store of images and videos answers, if there is one. May take seconds.

        Raises:
            QueueUnavailable: the check failed; `problems` says so too.
        """
        self._files.check_store()

    @property
    def unknown_files(self) -> int:
        """The number of entries of the data folder that the database does not know. They are kept."""
        return 0 if self._scheduler is None else len(self._scheduler.unknown_files)

    @property
    def worker_pids(self) -> tuple[int | None, ...]:
        """The process id of each worker; None for one that is not ready."""
        return () if self._scheduler is None else tuple(worker.pid for worker in self._scheduler.pool.workers)

    @property
    def workers_ready(self) -> bool:
        """Whether the workers can run jobs: all of this machine, or any of a cluster."""
        return self._scheduler is None or self._scheduler.pool.is_ready

    @property
    def cluster_ready(self) -> bool | None:
        """Whether the Ray cluster can run jobs; None without a cluster, or if another process runs the jobs."""
        if self._scheduler is None or self._scheduler.pool.cluster is None or not self.ready:
            return None
        return self._scheduler.pool.cluster.problem is None

    @property
    def ready_workers(self) -> int:
        """The number of workers that are ready."""
        return 0 if self._scheduler is None else sum(worker.is_ready for worker in self._scheduler.pool.workers)

    @property
    def workers(self) -> tuple[WorkerState, ...]:
        """What each worker does; in a process that runs no jobs, those of the process that does (PostgreSQL)."""
        return self.pool_state.workers

    @property
    def pool_state(self) -> PoolState:
        """What each worker does, and why none can be started or why no jobs run.

        In a process that runs no jobs, this is the state of the process that does (PostgreSQL), and its own problems.
        """
        if self._scheduler is not None and self.ready:
            state, own = self._scheduler.pool.state, self._files.problem
            return state if own is None else replace(state, problems=(*state.problems, own))
        state = PoolState.from_json(self._database.remote_workers())
        return replace(state, problems=(*self.problems, *state.problems))

    @property
    def problems(self) -> tuple[str, ...]:
        """Why this process runs no jobs, which workers can't be started, or why the store can't be used."""
        problems = () if self._scheduler is None else self._scheduler.problems()
        return problems if self._files.problem is None else (*problems, self._files.problem)

    def submit(self, new: NewJob) -> Job:
        """Queue a job. It is stored durably when this returns.

        Raises:
            QueueFull: KINEMA_QUEUE_SIZE jobs are queued.
            QuotaExceeded: the jobs of the owner reach one of the limits.
            InsufficientDisk: less than KINEMA_MIN_FREE_GB is free.
            IdempotencyKeyReused: the key was used with another request.
            QueueUnavailable: the queue is closing, its database or store does not answer, or, without a store, a
                process with another data folder runs the database's jobs.
        """
        if self._is_closed:
            raise QueueUnavailable(Message("queue_closing", "the queue is closing; try again when the server is back"))
        return self._submitter.submit(new)

    def get(self, job_id: str) -> Job:
        """Return the current state of a job.

        Raises:
            JobNotFound: no job has this id.
        """
        return self._updates.live(self._table.get(job_id))

    def titles(self, job_ids: Sequence[str]) -> dict[str, str | None]:
        """Return the titles of jobs by id, without those that do not exist any more.

        Raises:
            QueueUnavailable: the database does not answer.
        """
        return {job.id: job.title for job in self._table.get_many(job_ids)} if job_ids else {}

    def list(self, *, after: str | None = None, limit: int = 20, newest_first: bool = True) -> JobPage:
        """Return a page of jobs in order of submission, from the start or after the job with the id `after`.

        Raises:
            JobNotFound: no job has the id `after`.
            InvalidRequest: `limit` is not in 1 to 1000.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit {limit} is out of range: 1 to {MAX_PAGE}", "limit")
        page = self._table.page(after, limit, newest_first=newest_first)
        return JobPage(tuple(self._updates.live(job) for job in page.jobs), page.has_more)

    def waiting(self) -> int:
        """Return the number of queued jobs."""
        return self._table.waiting()

    def running(self) -> int:
        """Return the number of jobs that this process runs."""
        return 0 if self._scheduler is None else len(self._scheduler.running())

    def subscribe(self, job_id: str) -> Iterator[Job]:
        """Yield the job now and after each change, until it is finished or deleted.

        Raises:
            JobNotFound: no job has this id.
        """
        return self._updates.subscribe(job_id)

    def subscribe_async(self, job_id: str) -> AsyncIterator[Job]:
        """Like `subscribe`, but for an event loop; needs no thread per subscriber."""
        return self._updates.subscribe_async(job_id)

    def cancel(self, job_id: str) -> Job:
        """Set a queued or running job to failed with the code "cancelled" and stop its work within a step.

        A finished job does not change.

        Raises:
            JobNotFound: no job has this id.
        """
        before = self._table.get(job_id)
        if self._table.fail(job_id, CANCELLED, self._settings.keep_days * DAY):
            log.info("job %s was cancelled", job_id)
            if before.status == "queued":  # a requeued job may have output files
                self._files.delete_job(job_id)
                self._traces.finished(before, CANCELLED)
            self._stop(job_id)
        return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Cancel a job if it is not finished, and delete it with all its files, even if it is pinned.

        Raises:
            JobNotFound: no job has this id.
        """
        if not remove_job(self._table, self._files, job_id):
            self._table.get(job_id)  # raises JobNotFound
        log.info("job %s was deleted", job_id)
        self._stop(job_id)
        self._subscriptions.publish(job_id, None)

    def pin(self, job_id: str, *, pinned: bool = True) -> Job:
        """Pin a job so that it never expires, or unpin it so that it expires KINEMA_KEEP_DAYS from now.

        Raises:
            JobNotFound: no job has this id.
        """
        self._table.pin(job_id, self._settings.keep_days * DAY, pinned=pinned)
        return self._publish_change(job_id)

    def rename(self, job_id: str, title: str) -> Job:
        """Change a job's title.

        Raises:
            JobNotFound: no job has this id.
        """
        self._table.rename(job_id, title)
        return self._publish_change(job_id)

    def result(self, job_id: str) -> Path:
        """Return the path of a completed job's video. A video in a store is copied to the data folder first.

        Raises:
            JobNotFound: no job has this id.
            JobUnfinished: the job is not completed.
            QueueUnavailable: the store does not answer.
            InsufficientDisk: the disk has no space for the copy.
        """
        self._check_completed(job_id)
        return self._files.find_video(job_id)

    def signed_copy(self, job_id: str, name: str, make: Callable[[Path], bytes]) -> Path:
        """Return the path of a signed copy of a completed job's video; `make` makes it from the video if there is none.

        Raises:
            JobNotFound, JobUnfinished, QueueUnavailable, InsufficientDisk: as `result`.
        """
        self._check_completed(job_id)
        found = self._files.find_signed(job_id, name)
        return found or self._files.add_signed(job_id, name, make(self._files.find_video(job_id)))

    def result_address(self, job_id: str, name: str = PART_FILES["video"]) -> str | None:
        """Return a URL from which anyone can read a completed job's video for KINEMA_PRESIGN_SECONDS.

        None if that is 0, or if there is no object store. `name` is that of a signed copy, which must exist.

        Raises:
            JobNotFound, JobUnfinished: as `result`.
        """
        if not self._settings.presign_seconds:
            return None
        self._check_completed(job_id)
        return self._files.video_address(job_id, name, self._settings.presign_seconds)

    def _check_completed(self, job_id: str) -> None:
        job = self.get(job_id)
        if job.status == "failed":
            raise JobUnfinished(f"job {job_id} has no video: it failed{f' ({job.error.code})' if job.error else ''}")
        if job.status != "completed":
            raise JobUnfinished(
                f"job {job_id} is {job.status.replace('_', ' ')}; its video is available once it is completed"
            )

    def folder(self, job_id: str) -> Path:
        """Return a completed job's folder, for files derived from its video. It is deleted with the job.

        Raises:
            JobNotFound, JobUnfinished: as `result`.
        """
        return self.result(job_id).parent

    def image(self, job_id: str) -> Path | None:
        """Return the path of a job's input image, or None until it is generated.

        Raises:
            JobNotFound: no job has this id.
            QueueUnavailable: the store does not answer.
        """
        sha256 = self.get(job_id).image
        return None if sha256 is None else self._files.find_image(sha256, job_id) or self._files.image(sha256)

    def find_image(self, sha256: str) -> Path | None:
        """Return the path of an image that a job has, or None.

        Raises:
            QueueUnavailable: the store does not answer.
        """
        job_id, is_last = self._table.job_with_image(sha256) or (None, False)
        return self._files.find_image(sha256, job_id, is_last=is_last)

    def preview(self, job_id: str) -> bytes | None:
        """Return the latest preview of a running job as a JPEG, or None if there is none.

        Raises:
            JobNotFound: no job has this id.
        """
        if self.get(job_id).finished:
            return None
        return self._files.find_preview(job_id)

    def estimate(
        self, request: VideoRequest, *, workload: Workload | None = None, has_last_image: bool = False
    ) -> float | None:
        """Return the expected seconds of a request without its time in the queue, or None if unknown.

        Args:
            request: The request.
            workload: As for `submit`.
            has_last_image: Whether the video ends at an image.
        """
        if self._scheduler is None:
            return None
        size = JobSize(request, workload or Workload(request.work), has_last_image)
        return self._scheduler.speeds.estimate_job(size)

    def _stop(self, job_id: str) -> None:
        """Stop the work of a cancelled or deleted job and publish its state."""
        if self._scheduler is not None:
            self._scheduler.cancel(job_id)
        if self._scheduler is not None:
            self._scheduler.wake()
        found = self._table.get_many([job_id])
        if found:
            self._subscriptions.publish(job_id, found[0])

    def _publish_change(self, job_id: str) -> Job:
        """Publish a job whose title or pin has changed, and return it."""
        job = self._table.get(job_id)
        if self._scheduler is not None:
            self._scheduler.update_title_and_pin(job)
        job = self._updates.live(job)
        self._subscriptions.publish(job_id, job)
        return job


def _workflow_database(url: str) -> tuple[str, SqliteFile | None]:
    """Return DBOS's database URL, and its file for SQLite.

    With SQLite it is a second file, so that DBOS does not block the table of jobs. With PostgreSQL it is a schema of
    the same database.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return url, None
    workflow_url = parsed.set(database=f"{parsed.database}.workflows")
    # SqliteFile creates the file with private permissions before DBOS opens it.
    return workflow_url.render_as_string(hide_password=False), SqliteFile(workflow_url)
