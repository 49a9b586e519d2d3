"""The scheduler: assigns queued jobs to free workers, recovers interrupted jobs, and deletes expired ones."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import logging
import threading
import time
from typing import TYPE_CHECKING

import sqlalchemy as sa

from kinema.errors import ContentRefused, JobNotFound, KinemaError
from kinema.jobs.attempt import Attempt, retry
from kinema.jobs.cluster import Cluster
from kinema.jobs.deletion import DAY, delete_removed_files, remove_job, sweep
from kinema.jobs.eta import StageSpeeds
from kinema.jobs.job import PART_FILES, Failure, Job
from kinema.jobs.run_ends import Requeued, WorkCancelled
from kinema.jobs.scheduler_lock import SchedulerLock
from kinema.jobs.supervisor import Supervisor
from kinema.jobs.wall_clock import WallClock
from kinema.jobs.worker_devices import on_gpus
from kinema.jobs.worker_pool import WorkerPool
from kinema.jobs.workflows import MAX_RECOVERIES, WORKFLOW_VERSION, Workflows
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kinema.jobs.change_feed import Changes
    from kinema.jobs.job_files import JobFiles
    from kinema.jobs.job_table import JobTable
    from kinema.jobs.job_traces import JobTraces
    from kinema.jobs.subscriptions import Subscriptions
    from kinema.jobs.worker import Worker
    from kinema.settings import Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
HOUSEKEEPING_SECONDS = 30.0
SWEEP_SECONDS = 3600.0
# Pause before a job is requeued because the server ran out of memory, descriptors or threads.
SHORTAGE_SECONDS = 1.0


class Scheduler:
    """Runs the jobs of a database and data folder while this process holds the locks of both."""

    def __init__(
        self,
        work: str,
        devices: Sequence[str],
        settings: Settings,
        table: JobTable,
        files: JobFiles,
        subscriptions: Subscriptions,
        traces: JobTraces,
        workflow_url: str,
        on_finished: Callable[[Job], None] | None = None,
    ) -> None:
        self.speeds = StageSpeeds()
        self.unknown_files: list[str] = []  # entries of the data folder that the database does not know
        self.ready = threading.Event()
        self._on_finished = on_finished
        self._keep_seconds = settings.keep_days * DAY
        self._table = table
        self._files = files
        self._subscriptions = subscriptions
        self._traces = traces
        self._workflows = Workflows(workflow_url)
        self._lock = SchedulerLock(table.database, files)
        self._clock = WallClock()
        self._wake = threading.Event()
        self._supervisor = Supervisor("kinema-scheduler", self._run_with_lock, self._report_failure)
        self._stopping = self._supervisor.stopping  # set: start no more jobs
        self._closing = threading.Event()  # set: requeue running jobs; each `_run_jobs` has its own
        self._problem: str | None = None  # why this process runs no jobs
        self._is_waiting = False  # for the lock
        self._claim_lock = threading.Lock()  # within it, a claimed job is always in _assigned or _attempts
        self._assigned: dict[str, Worker] = {}  # worker of each claimed job
        self._attempts: dict[str, Attempt] = {}
        self._active: set[str] = set()  # jobs with a thread, so that none gets two
        self._to_requeue: set[str] = set()  # jobs in progress that no thread runs any more
        self._idle: set[str] = set()  # jobs in progress that no thread ran at the last `_reconcile`
        self._positions: dict[str, int | None] = {}  # last published positions
        cluster = None
        if settings.ray_address is not None:
            cluster, devices = Cluster(settings.ray_address, settings.gpus_per_video, self._wake.set), ()
        self._sweeper = threading.Thread()
        self.pool = WorkerPool(
            work,
            devices,
            settings.step_timeout,
            self._wake.set,
            cluster,
            settings.workers,
            has_spare=on_gpus(devices),
        )

    def start(self) -> None:
        """Start to run jobs, as soon as no other process does."""
        self._supervisor.start()

    def close(self, grace: float) -> None:
        """Start no more jobs, wait up to `grace` seconds for running ones, requeue the rest and end the workers."""
        self._stopping.set()
        self._wake.set()
        deadline = time.monotonic() + grace
        while self._is_busy() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._closing.set()
        self._supervisor.join()

    def _is_busy(self) -> bool:
        with self._claim_lock:
            return bool(self._active or self._assigned or self._attempts)

    @property
    def is_standby(self) -> bool:
        """Whether another process, to which this one can submit jobs, runs them."""
        return self._is_waiting and self._problem is None

    def wake(self) -> None:
        """Look for queued jobs now."""
        self._wake.set()

    def note_changes(self, changes: Changes) -> None:
        """Look now for jobs that other processes submitted, cancelled or deleted."""
        for job_id, attempt in list(self._attempts.items()):
            if job_id in changes:
                attempt.check_soon()
        self._wake.set()

    def cancel(self, job_id: str) -> None:
        """Stop the work of a job if this process runs it."""
        attempt = self._attempts.get(job_id)
        if attempt is not None:
            attempt.cancelled.set()

    def with_live_progress(self, job: Job) -> Job:
        """Return a job from the table with its current progress, which may not be stored yet."""
        attempt = self._attempts.get(job.id)
        if job.status == "in_progress" and attempt is not None:
            return dataclasses.replace(attempt.snapshot(), title=job.title, pinned=job.pinned)
        return job

    def update_title_and_pin(self, job: Job) -> None:
        """Set the title and pin of a running job's attempt, for the progress that it publishes from now on."""
        attempt = self._attempts.get(job.id)
        if attempt is not None:
            attempt.title, attempt.pinned = job.title, job.pinned

    def running(self) -> list[Job]:
        """Return the jobs that this process runs."""
        return [attempt.snapshot() for attempt in list(self._attempts.values())]

    def problems(self) -> tuple[str, ...]:
        """Return why this process runs no jobs, and which workers can't be started."""
        own: tuple[str, ...] = () if self._problem is None else (self._problem,)
        if self.pool.cluster is not None and self.pool.cluster.problem is not None:
            return (*own, self.pool.cluster.problem)  # the reason for those of the workers
        return own + tuple(worker.problem for worker in self.pool.workers if worker.problem is not None)

    # The scheduler thread

    def _run_with_lock(self) -> None:
        """Wait for the lock, then run jobs until the queue closes or the lock is lost."""
        self._is_waiting = True
        with self._lock.acquire(self._stopping, self._set_problem) as acquired:
            self._is_waiting = False
            if acquired:
                self._run_jobs()

    def _set_problem(self, problem: str | None) -> None:
        self._problem = problem

    def _report_failure(self, error: Exception, pause: float) -> None:
        self._problem = Message("queue_stopped", "the queue can't run jobs at the moment (see the log)")
        expected = isinstance(error, KinemaError | OSError | sa.exc.SQLAlchemyError)
        log.warning(
            "the queue can't run jobs: %s; next attempt in %.1f seconds",
            _first_line(error), pause, exc_info=None if expected else error, extra={"repeats": expected},
        )  # fmt: skip

    def _on_lock_lost(self, closing: threading.Event) -> None:
        """Stop all work, since another process may run the jobs now."""
        self._problem = Message(
            "scheduler_lost",
            "another process runs the jobs, or the connection to the database is lost; jobs wait until it is back",
        )
        log.warning("%s", self._problem)
        self.ready.clear()
        closing.set()
        self._wake.set()

    def _run_jobs(self) -> None:
        closing = self._closing = threading.Event()
        if self._stopping.is_set():
            closing.set()  # `close` may have set the former event
        self._to_requeue.clear()  # DBOS resumes these jobs
        self.speeds = StageSpeeds(self._table.latest_completed(20))
        with contextlib.ExitStack() as stack:
            on_lost = functools.partial(self._on_lock_lost, closing)
            stack.enter_context(self._lock.monitor(self.pool.state_as_json, on_lost))
            self._sweep()
            stack.callback(self._workflows.launch(lambda job_id: self._run_job(job_id, closing)))
            stack.callback(self.pool.close)
            self.pool.start()
            stack.callback(self._end_attempts)
            self._log_errors(self._reconcile)
            self.ready.set()
            last_housekeeping = last_sweep = time.monotonic()
            while not self._stopping.is_set() and not closing.is_set():
                self._log_errors(self.pool.follow_cluster)
                self._log_errors(self._requeue_jobs)
                self._log_errors(self._assign_jobs)
                self._log_errors(self._publish_positions)
                if time.monotonic() - last_housekeeping > HOUSEKEEPING_SECONDS:
                    self._log_errors(self._do_housekeeping)
                    last_housekeeping = time.monotonic()
                if time.monotonic() - last_sweep > SWEEP_SECONDS:
                    self._log_errors(self._sweep)
                    last_sweep = time.monotonic()
                self._wake.wait(POLL_SECONDS)  # other processes may submit jobs too
                self._wake.clear()

    def _end_attempts(self) -> None:
        """Wait until no thread has a job or a worker.

        When the queue closes, running jobs are requeued at the end of the grace period; otherwise at once.
        """
        self.ready.clear()
        if self._stopping.is_set():
            self._closing.wait()
        self._closing.set()
        deadline = time.monotonic() + 5
        while self._is_busy() and not (self._stopping.is_set() and time.monotonic() > deadline):
            time.sleep(0.02)

    def _log_errors(self, action: Callable[[], None]) -> None:
        """Run an action of the scheduler thread. Log an error and wait; the action runs again later."""
        try:
            action()
        except Requeued:  # the queue closes
            return
        except (KinemaError, OSError, sa.exc.SQLAlchemyError) as error:
            log.warning("%s", _first_line(error))
        except Exception:
            log.exception("internal error in the queue")
        else:
            return
        self._stopping.wait(POLL_SECONDS)

    def _assign_jobs(self) -> None:
        """Assign queued jobs to free workers, and start their workflows."""
        while not self._stopping.is_set() and not self._closing.is_set() and (models := self.pool.free_models()):
            with self._claim_lock:
                claimed = self._table.claim(models)
                if claimed is None:
                    return
                job_id, model = claimed
                worker = self.pool.acquire(model)
                if worker is None:  # a resumed job took it, or its process has just died
                    self._table.requeue(job_id)
                    return
                self._assigned[job_id] = worker
            try:
                self._workflows.start(job_id)
            except Exception:
                del self._assigned[job_id]
                self._to_requeue.add(job_id)  # DBOS may have stored the workflow and would not start it again
                self.pool.release(worker)
                raise

    def _publish_positions(self) -> None:
        """Publish new queue positions, and changes that other processes made, to subscribers of jobs not run here."""
        job_ids = [job_id for job_id in self._subscriptions.job_ids() if job_id not in self._attempts]
        before, self._positions = self._positions, {}
        if not job_ids:
            return
        jobs = {job.id: job for job in self._table.get_many(job_ids)}
        for job_id in job_ids:
            job = jobs.get(job_id)
            if job is None or job.finished:
                self._subscriptions.publish(job_id, job)
            elif job.status == "queued":  # a running job publishes its own progress
                self._positions[job_id] = job.queue_position
                if before.get(job_id) != job.queue_position:
                    self._subscriptions.publish(job_id, job)

    # The thread of a job

    def _run_job(self, job_id: str, closing: threading.Event) -> None:
        """Run a job from its first to its last part. DBOS calls this again after a crash."""
        with self._claim_lock:
            if job_id in self._active:  # two threads would share a worker
                raise Requeued
            self._active.add(job_id)
        is_requeued = False
        try:
            if closing.is_set():  # DBOS started the thread late
                raise Requeued
            self._attempt_job(job_id)
        except Requeued:
            is_requeued = not closing.is_set()
            raise
        finally:
            self._release_worker(job_id)
            try:
                if not is_requeued and not closing.is_set():
                    self._clean_up(job_id)
            finally:
                self._attempts.pop(job_id, None)
                self._active.discard(job_id)
                if is_requeued:
                    self._to_requeue.add(job_id)
                    self._wake.set()

    def _release_worker(self, job_id: str) -> None:
        """Let the job's worker get another job."""
        worker = self._assigned.pop(job_id, None)
        if worker is not None:
            self.pool.release(worker)

    def _attempt_job(self, job_id: str) -> None:
        try:
            job = retry(lambda: self._table.get(job_id), self._closing)
            if job.status != "in_progress":  # cancelled, or completed just before a crash
                return
            attempt = self._attempts[job_id] = Attempt(
                job, self.speeds, self._table, self._files, self._subscriptions, self._traces, self._closing
            )
            if job_id in self._assigned:
                self._traces.queued(job)
            worker = self._assigned.get(job_id) or self.pool.acquire(job.request.model)
            if worker is None:  # the job was resumed after a crash, and other jobs have all workers
                raise Requeued
            self._assigned[job_id] = worker
            log.info("job %s started", job_id)
            failure = attempt.run(worker, functools.partial(self._release_worker, job_id))
            if failure is not None:
                self._fail(job_id, failure)
                return
            self.speeds.learn(attempt.snapshot())  # before anybody can see that it is completed
            if retry(lambda: self._table.complete(job_id, self._keep_seconds), self._closing):
                log.info("job %s completed", job_id)
        except (JobNotFound, WorkCancelled):
            pass  # logged by the caller of cancel or delete
        except Exception as error:  # noqa: BLE001 - DBOS's control flow uses BaseException
            self._handle_error(job_id, error)

    def _handle_error(self, job_id: str, error: Exception) -> None:
        """Set a job to failed after an unexpected error.

        Raises:
            Requeued: the server has run out of memory, descriptors or threads.
        """
        if _is_shortage(error):
            log.warning("job %s is requeued: %s", job_id, _first_line(error))
            self._closing.wait(SHORTAGE_SECONDS)
            raise Requeued
        if _is_disk_full(error):
            self._fail(job_id, Failure("insufficient_disk", "the disk is full; free disk space and try again"))
        else:
            self._fail(job_id, Failure("internal_error", f"{type(error).__name__}: {error}"), error)

    def _fail(self, job_id: str, failure: Failure, internal_error: Exception | None = None) -> None:
        """Set a job to failed, unless it was cancelled or deleted; log an internal error with its traceback."""

        def fail() -> bool:
            if failure.code == ContentRefused.code:
                return self._table.refuse(job_id, failure, self._keep_seconds)
            return self._table.fail(job_id, failure, self._keep_seconds, as_scheduler=True)

        if retry(fail, self._closing):
            log.warning("job %s failed: %s: %s", job_id, failure.code, failure.message, exc_info=internal_error)

    def _clean_up(self, job_id: str) -> None:
        """Delete the intermediate files of an ended job, or all files of a failed or deleted one; publish its state."""
        try:
            job = retry(lambda: self._table.get(job_id), self._closing)
        except JobNotFound:
            self._files.delete_job(job_id)
            self._subscriptions.publish(job_id, None)
            return
        if job.finished:
            folder = self._files.job(job_id)
            for name in (PART_FILES["latents"], PART_FILES["image"]):
                (folder / name).unlink(missing_ok=True)
            self._files.delete_preview(job_id)
            if job.status == "failed":
                self._files.delete_job(job_id)
            if job.error is not None and job.error.code == ContentRefused.code:
                self._log_errors(functools.partial(self._delete_removed_files, ended=job_id))
            self._traces.finished(job)
            if self._on_finished is not None:
                self._on_finished(job)
        self._subscriptions.publish(job_id, job)

    # Recovery

    def _requeue_jobs(self) -> None:
        """Requeue the jobs that no thread runs any more. Their workflows are deleted, so that DBOS starts them anew."""
        for job_id in list(self._to_requeue):
            if job_id in self._attempts:  # DBOS started the thread late
                self._to_requeue.discard(job_id)
                continue
            self._workflows.delete(job_id)
            if self._table.requeue(job_id):
                log.info("job %s was requeued", job_id)
            else:  # it was cancelled or deleted
                self._clean_up(job_id)
            self._to_requeue.discard(job_id)

    def _reconcile(self) -> None:
        """Find jobs in progress that no thread runs; requeue them, or set them to failed if DBOS gave them up.

        DBOS may be about to resume a job, so a job with a pending workflow must be idle in two successive calls.
        """
        idle_before, self._idle = self._idle, set()
        for job in self._table.running():
            if job.id in self._attempts or job.id in self._assigned or job.id in self._to_requeue:
                continue
            workflow = self._workflows.status(job.id)
            if workflow is None or workflow.status in ("CANCELLED", "SUCCESS"):
                # The process died while it claimed or requeued the job, or the table was restored from a backup.
                self._to_requeue.add(job.id)
            elif workflow.status not in ("PENDING", "ENQUEUED", "DELAYED"):
                message = f"the server died {MAX_RECOVERIES} times while running it, or the workflow failed"
                self._fail(job.id, Failure("interrupted", message))
                self._clean_up(job.id)
            elif workflow.app_version != WORKFLOW_VERSION:
                self._files.delete_job(job.id)
                self._to_requeue.add(job.id)
            elif job.id in idle_before:
                self._to_requeue.add(job.id)
            else:
                self._idle.add(job.id)

    # Housekeeping

    def _do_housekeeping(self) -> None:
        """Delete expired jobs, files of removed jobs and ended workflows; find interrupted jobs; check the database."""
        for job_id in self._table.expired() if self._clock.is_trusted() else ():
            if remove_job(self._table, self._files, job_id, only_expired=True):
                self._subscriptions.publish(job_id, None)
                log.info("job %s expired", job_id)
        ended = self._workflows.ended()
        self._reconcile()
        self._delete_removed_files()
        self._workflows.delete_ended([job_id for job_id in ended if job_id not in self._attempts])
        self._table.database.check()

    def _delete_removed_files(self, ended: str | None = None) -> None:
        """Delete the files of removed jobs that do not run; `ended` is a job that this process has just run."""
        with self._claim_lock:
            running = (self._assigned.keys() | self._attempts.keys()) - {ended}
        delete_removed_files(self._table, self._files, running)

    def _sweep(self) -> None:
        """Sweep the files, in a thread if they are in a store: to list its files may take long, or fail."""
        if not self._files.is_shared:
            self._sweep_files()
        elif not self._sweeper.is_alive():
            self._sweeper = threading.Thread(
                target=self._log_errors, args=(self._sweep_files,), name="kinema-sweep", daemon=True
            )
            self._sweeper.start()

    def _sweep_files(self) -> None:
        """Finish interrupted deletions, and log the files that the database does not know."""
        self._delete_removed_files()
        unknown = sweep(self._table, self._files)
        if unknown and unknown != self.unknown_files:
            log.warning(
                "%d entries of the %s are not in the database and are kept: %s%s",
                len(unknown),
                self._files.location,
                ", ".join(unknown[:5]),
                ", …" if len(unknown) > 5 else "",
            )
        self.unknown_files = unknown


def _is_disk_full(error: Exception) -> bool:
    """Return whether a file, or SQLite in DBOS, found no disk space."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(error)


def _is_shortage(error: Exception) -> bool:
    """Return whether the server temporarily ran out of descriptors, memory or threads."""
    return (
        getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
        or isinstance(error, MemoryError)
        or "unable to open database file" in str(error)  # SQLite in DBOS, without a free descriptor
    )


def _first_line(error: Exception) -> str:
    """Return the error message without the statement and parameters that SQLAlchemy adds."""
    return str(error).partition("\n")[0]
