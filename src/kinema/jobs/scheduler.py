"""What runs the jobs: lends free workers to those whose turn it is, part by part under DBOS, and keeps house."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from kinema.errors import InsufficientDisk, JobNotFound, KinemaError, QueueUnavailable
from kinema.jobs.eta import JobEta, StageSpeeds
from kinema.jobs.job import PRODUCTS, Failure, Job, Part, Task
from kinema.jobs.job_files import clear_asides, try_lock
from kinema.jobs.supervisor import Supervisor
from kinema.jobs.wall_clock import WallClock
from kinema.jobs.worker_pool import Requeued, WorkCancelled, Worker, WorkerLost, WorkerPool, WorkFailed
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from kinema.jobs.job_files import JobFiles
    from kinema.jobs.job_table import JobTable
    from kinema.jobs.subscriptions import Subscriptions
    from kinema.jobs.worker_pool import Wish
    from kinema.settings import Settings

log = logging.getLogger(__name__)

# How many workers may die or hang under a job before it is the job's fault.
MAX_ATTEMPTS = 3
# How often a job may be begun again because the whole server died.
MAX_RECOVERIES = 50
PARTS: tuple[Part, ...] = ("image", "latents", "video")
PREVIEW = "preview.jpg"

PUBLISH_SECONDS = 0.25
RECORD_SECONDS = 1.0
LOOK_SECONDS = 1.0
# How often it is checked that the database's lock is still held.
LOCK_SECONDS = 1.0
HOUSEKEEPING_SECONDS = 30.0
SWEEP_SECONDS = 3600.0
# How long a job waits before it goes back to the queue, where the server ran out of something.
SHORTAGE_SECONDS = 1.0
DAY = 86_400.0
_NO_IMAGE = (
    "its image is not in the data folder of the server that now runs the database's jobs; send the request again, "
    "to that server"
)
# Raised when the order or meaning of a job's parts changes: DBOS then leaves older ones alone, and they are begun anew.
WORKFLOW_VERSION = "1"

Result = TypeVar("Result")


class Attempt:
    """A job that is being run: how far it is, told on to the store and to who watches, no more often than it pays."""

    def __init__(
        self, job: Job, speeds: StageSpeeds, store: JobTable, watchers: Subscriptions, closing: threading.Event
    ) -> None:
        self.job = job
        self.title, self.pinned = job.title, job.pinned  # anyone may change them while it runs
        self.text_to_image = job.request.prompt is not None
        self.cancelled = threading.Event()
        self._closing = closing
        self._store = store
        self._watchers = watchers
        self._meter = JobEta(job.request, speeds, job.stage_durations, text_to_image=self.text_to_image)
        self._published = 0.0
        self._recorded = time.monotonic()

    def begin(self) -> None:
        """A worker begins a part."""
        self._meter.begin()
        self._watchers.publish(self.job.id, self.snapshot())

    def tell_step(self, stage: str, step: int, total: int) -> None:
        """A step is done."""
        new_stage = stage != self._meter.stage
        self._meter.tell(stage, step, total)
        now = time.monotonic()
        if new_stage or step == total or now - self._published >= PUBLISH_SECONDS:
            self._published = now
            self._watchers.publish(self.job.id, self.snapshot())

    def tell_preview(self) -> None:
        """There is another preview."""
        self.job = dataclasses.replace(self.job, previews=self.job.previews + 1)
        self._watchers.publish(self.job.id, self.snapshot())

    def snapshot(self) -> Job:
        """The job as it is at this moment."""
        meter = self._meter
        return dataclasses.replace(
            self.job,
            title=self.title,
            pinned=self.pinned,
            stage=meter.stage,
            step=meter.step,
            total=meter.total,
            progress=meter.percent,
            eta=meter.eta(),
            stage_durations=dict(meter.durations),
        )

    def record(self) -> bool:
        """Write down how far it is; whether it is still wanted."""
        now = self.snapshot()
        return self._store.record(
            now.id,
            stage=now.stage,
            step=now.step,
            total=now.total,
            progress=now.progress,
            eta=now.eta,
            stage_durations=now.stage_durations,
            previews=now.previews,
        )

    def wish(self) -> Wish:
        """Whether the work is to go on. The store is asked now and then: another process may have cancelled it."""
        # An interpreter that ends waits for its threads, so they must end although no one closed the queue.
        if self._closing.is_set() or not threading.main_thread().is_alive():
            return "put back"
        if not self.cancelled.is_set() and time.monotonic() - self._recorded >= RECORD_SECONDS:
            self._recorded = time.monotonic()
            try:
                if not self.record():
                    self.cancelled.set()
            except (QueueUnavailable, InsufficientDisk) as error:
                log.warning("job %s: %s", self.job.id, error)
        return "cancel" if self.cancelled.is_set() else "go on"


class Scheduler:
    """Runs the jobs of one data folder and database, for as long as this process holds both."""

    def __init__(
        self,
        work: str,
        devices: Sequence[str],
        settings: Settings,
        store: JobTable,
        files: JobFiles,
        watchers: Subscriptions,
        workflows_url: str,
        ended: Callable[[Job], None] | None = None,
    ) -> None:
        self.speeds = StageSpeeds()
        self.unknown: list[str] = []  # what is in the data folder but in no record
        self._ended = ended
        self.ready = threading.Event()
        self._settings = settings
        self._store = store
        self._files = files
        self._watchers = watchers
        self._workflows_url = workflows_url
        self._wake = threading.Event()
        self._supervisor = Supervisor("kinema-runner", self._serve, self._failed)
        self._stopping = self._supervisor.stopping  # no new jobs
        self._closing = threading.Event()  # running ones are put back; each `_run_jobs` has its own
        self._problem: str | None = None  # why no jobs are run
        self._runs: dict[str, Attempt] = {}
        self._lent: dict[str, Worker] = {}
        self._begun: set[str] = set()  # what has a thread, so that it never has two
        self._left: set[str] = set()  # jobs in progress that no one works on any more
        self._clock = WallClock()
        self._idle: set[str] = set()  # those that no one worked on when it was last looked at
        self._claiming = threading.Lock()  # a claimed job is in _lent or _runs for all who hold it
        self._workflow: Callable[[str], None] | None = None
        self._places: dict[str, int | None] = {}
        self.pool = WorkerPool(work, devices, settings.step_timeout, self._wake.set)

    def start(self) -> None:
        """Begin to run jobs, as soon as no other process does."""
        self._supervisor.start()

    def close(self, grace: float) -> None:
        """Begin no more jobs, wait so many seconds for running ones, put back the rest, end the workers."""
        self._stopping.set()
        self._wake.set()
        deadline = time.monotonic() + grace
        while self._busy() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._closing.set()
        self._supervisor.join()

    def _busy(self) -> bool:
        with self._claiming:
            return bool(self._begun or self._lent or self._runs)

    def changed(self) -> None:
        """The queue is not what it was: jobs came, or went."""
        self._wake.set()

    def cancel(self, job_id: str) -> None:
        """End a job's work, if it runs here."""
        run = self._runs.get(job_id)
        if run is not None:
            run.cancelled.set()

    def as_it_is(self, job: Job) -> Job:
        """A job from the store with what is not written down yet."""
        run = self._runs.get(job.id)
        if job.status == "in_progress" and run is not None:
            return dataclasses.replace(run.snapshot(), title=job.title, pinned=job.pinned)
        return job

    def renew(self, job: Job) -> None:
        """Have a job that runs here told of by its new title, and as pinned or not."""
        run = self._runs.get(job.id)
        if run is not None:
            run.title, run.pinned = job.title, job.pinned

    def running(self) -> list[Job]:
        """The jobs that are being run here."""
        return [run.snapshot() for run in list(self._runs.values())]

    def problems(self) -> tuple[str, ...]:
        """Why jobs are not run here, or by fewer workers than there should be."""
        own = () if self._problem is None else (self._problem,)
        return own + tuple(worker.problem for worker in self.pool.workers if worker.problem is not None)

    def _serve(self) -> None:
        """Run jobs until the queue closes, once no other process does."""
        with self._alone() as alone:
            if alone:
                self._run_jobs()

    def _failed(self, error: Exception, pause: float) -> None:
        """Jobs can't be run: the database may be away, or a lock's file can't be opened."""
        self._problem = "the queue's jobs can't be run at the moment (see the log)"
        expected = isinstance(error, KinemaError | OSError | sa.exc.SQLAlchemyError)
        log.warning(
            "jobs can't be run: %s; next attempt in %.1f seconds",
            _first_line(error), pause, exc_info=None if expected else error,
        )  # fmt: skip

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Wait until no other process runs the jobs of this folder and database; False where it closes before that."""
        with self._files.runner.open("ab") as lock, contextlib.ExitStack() as held:
            alone = False
            while not alone and not self._stopping.is_set():
                with contextlib.ExitStack() as tried:
                    # Whoever holds the database's lock holds his folder's all that time, so that others may tell
                    # where he runs; who only waits holds neither.
                    if not self._store.has_runner() and try_lock(lock, fcntl.LOCK_EX):
                        tried.callback(fcntl.flock, lock, fcntl.LOCK_UN)
                        alone = tried.enter_context(self._store.sole_runner())
                    if alone:
                        held.push(tried.pop_all())
                elsewhere = None if alone else runs_elsewhere(self._store, self._files)
                self._problem = None if elsewhere is None else str(elsewhere)
                if not alone:
                    self._stopping.wait(0.25)
            yield alone

    @contextlib.contextmanager
    def _watching_lock(self) -> Iterator[None]:
        """Have everything stop as soon as the database's lock is lost: another process may run the jobs then."""
        ended, closing = threading.Event(), self._closing

        def watch() -> None:
            while not ended.wait(LOCK_SECONDS):
                if not self._store.is_sole_runner():
                    self._problem = "the connection that holds the database's lock was lost; jobs wait for another one"
                    log.warning("%s", self._problem)
                    self.ready.clear()
                    closing.set()
                    self._wake.set()
                    return

        watcher = threading.Thread(target=watch, name="kinema-runner-lock", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def _run_jobs(self) -> None:
        self._closing = threading.Event()
        if self._stopping.is_set():
            self._closing.set()  # by `close`, maybe that of before
        self._left.clear()  # DBOS goes on with those
        self.speeds = StageSpeeds(self._store.latest_completed(20))
        self._sweep()
        with contextlib.ExitStack() as begun:
            begun.enter_context(self._watching_lock())
            begun.callback(self._launch())
            begun.callback(self.pool.close)
            self.pool.start()
            begun.callback(self._end_runs)
            self._guarded(self._reconcile)
            self.ready.set()
            kept = swept = time.monotonic()
            while not self._stopping.is_set() and not self._closing.is_set():
                self._guarded(self._queue_again)
                self._guarded(self._lend)
                self._guarded(self._tell_of_waiting)
                if time.monotonic() - kept > HOUSEKEEPING_SECONDS:
                    self._guarded(self._keep_house)
                    kept = time.monotonic()
                if time.monotonic() - swept > SWEEP_SECONDS:
                    self._guarded(self._sweep)
                    swept = time.monotonic()
                self._wake.wait(LOOK_SECONDS)  # jobs may come from other processes, too
                self._wake.clear()

    def _end_runs(self) -> None:
        """Have the running jobs put back: at the end of the grace, or at once where the thread failed or lost its lock.

        Where it runs jobs again, no thread of before still has a job or a worker by then.
        """
        self.ready.clear()
        if self._stopping.is_set():
            self._closing.wait()
        self._closing.set()
        ended_by = time.monotonic() + 5
        while self._busy() and not (self._stopping.is_set() and time.monotonic() > ended_by):
            time.sleep(0.02)

    def _guarded(self, action: Callable[[], None]) -> None:
        """The queue lives through a full disk and a database that is away; both are told, and tried again."""
        try:
            action()
        except Requeued:  # the queue closes
            return
        except (KinemaError, OSError, sa.exc.SQLAlchemyError) as error:
            log.warning("%s", _first_line(error))
        except Exception:
            log.exception("a defect of the queue")
        else:
            return
        self._stopping.wait(LOOK_SECONDS)

    def _launch(self) -> Callable[[], None]:
        """Start DBOS, which begins again what was running when its last process ended; how to stop it."""
        from dbos import DBOS

        closing = self._closing

        def kinema_job(job_id: str) -> None:
            self._run(job_id, closing)

        DBOS(
            config={
                "name": "kinema",
                "system_database_url": self._workflows_url,
                # Fixed: DBOS's own would change with the code and the process, and strand what they left.
                "executor_id": "kinema",
                "application_version": WORKFLOW_VERSION,
                "enable_otlp": False,
                "log_level": "ERROR",
                "use_listen_notify": False,
            }
        )
        self._workflow = DBOS.workflow(name="kinema_job", max_recovery_attempts=MAX_RECOVERIES)(kinema_job)
        try:
            DBOS.launch()
        except Exception as error:  # noqa: BLE001 - DBOS raises its own, SQLAlchemy's and the driver's
            DBOS.destroy(destroy_registry=True)
            raise QueueUnavailable(f"the queue's workflows can't be opened: {error}") from None
        return functools.partial(DBOS.destroy, destroy_registry=True)

    def _lend(self) -> None:
        """Lend each free worker to the job whose turn it is."""
        from dbos import DBOS, SetWorkflowID

        assert self._workflow is not None, "DBOS is launched before jobs are lent to"
        while not self._stopping.is_set() and not self._closing.is_set() and (models := self.pool.free_models()):
            with self._claiming:
                claimed = self._store.claim(models)
                if claimed is None:
                    return
                job_id, model = claimed
                worker = self.pool.take(model)
                if worker is None:  # one that goes on after a crash was quicker, or it has just died
                    self._store.unclaim(job_id)
                    return
                self._lent[job_id] = worker
            try:
                self._forget_ended(job_id)
                with SetWorkflowID(job_id):
                    DBOS.start_workflow(self._workflow, job_id)
            except Exception:
                del self._lent[job_id]
                self._left.add(job_id)  # DBOS may have noted it, and would not begin it a second time
                self.pool.give_back(worker)
                raise

    def _forget_ended(self, job_id: str) -> None:
        """Let DBOS begin a job that it did before, as it never would by itself.

        The database of jobs was restored from a backup, and DBOS's was not.
        """
        from dbos import DBOS

        status = DBOS.get_workflow_status(job_id)
        if status is not None and status.status in ("SUCCESS", "ERROR"):
            DBOS.delete_workflow(job_id)

    def _run(self, job_id: str, closing: threading.Event) -> None:
        """One job, from its first part to its last; DBOS begins it again after a crash, and skips what is done."""
        with self._claiming:
            if job_id in self._begun:  # two would share a worker
                raise Requeued
            self._begun.add(job_id)
        left = False
        try:
            if closing.is_set():  # DBOS was late
                raise Requeued
            self._work_on(job_id)
        except Requeued:
            left = not closing.is_set()
            raise
        finally:
            worker = self._lent.pop(job_id, None)
            if worker is not None:
                self.pool.give_back(worker)
            try:
                if not left and not closing.is_set():
                    self._after(job_id)
            finally:
                self._runs.pop(job_id, None)
                self._begun.discard(job_id)
                if left:
                    self._left.add(job_id)
                    self._wake.set()

    def _work_on(self, job_id: str) -> None:
        try:
            job = self._insisting(lambda: self._store.get(job_id))
            if job.status != "in_progress":  # cancelled, or completed in the moment of the crash
                return
            run = self._runs[job_id] = Attempt(job, self.speeds, self._store, self._watchers, self._closing)
            worker = self._lent.get(job_id) or self.pool.take(job.request.model)
            if worker is None:  # it goes on after a crash, and others have all workers
                raise Requeued
            self._lent[job_id] = worker
            log.info("job %s begins", job_id)
            self._run_parts(run, worker)
        except (JobNotFound, WorkCancelled):
            pass  # who cancelled or deleted it has told
        except Exception as error:  # noqa: BLE001 - DBOS's own signals are none
            self._end_with(job_id, error)

    def _end_with(self, job_id: str, error: Exception) -> None:
        """A job fails, or goes back to the queue where the server has run out of something.

        Raises:
            Requeued: then.
        """
        if _is_shortage(error):
            log.warning("job %s can't go on for now: %s", job_id, _first_line(error))
            self._closing.wait(SHORTAGE_SECONDS)
            raise Requeued
        if _is_full_disk(error):
            self._fail(job_id, Failure("insufficient_disk", "the disk is full: make room, and ask again"))
        else:
            self._fail(job_id, Failure("internal_error", f"{type(error).__name__}: {error}"), error)

    def _run_parts(self, run: Attempt, worker: Worker) -> None:
        from dbos import DBOS

        # By the request alone: begun again, a job must go through the same parts in the same order.
        for part in PARTS if run.text_to_image else PARTS[1:]:
            made = DBOS.run_step({"name": part}, self._make, run, part, worker)
            if "code" in made:
                self._fail(run.job.id, Failure(made["code"], made["message"]))
                return
            run.job = dataclasses.replace(run.job, image=made["image"])
        self._insisting(run.record)
        if self._insisting(lambda: self._store.complete(run.job.id, self._settings.keep_days * DAY)):
            self.speeds.learn(run.snapshot())
            log.info("job %s is completed", run.job.id)

    def _make(self, run: Attempt, part: Part, worker: Worker) -> dict[str, Any]:
        """Make a part of a job; what DBOS writes down: the still's hash, or why it failed.

        What earlier parts made is missing where another server had the job, with another folder: it is made again.
        """
        folder = self._files.job(run.job.id)
        folder.mkdir(exist_ok=True, mode=0o700)
        if self._is_made(run, part):  # before the job went back to the queue
            return {"image": run.job.image}
        for earlier in PARTS[: PARTS.index(part)]:
            if self._is_made(run, earlier):
                continue
            if earlier == "image" and not run.text_to_image:
                return {"code": "interrupted", "message": _NO_IMAGE}
            again = self._make(run, earlier, worker)
            if "code" in again:
                return again
            run.job = dataclasses.replace(run.job, image=again["image"])
        return self._perform(run, part, worker, folder)

    def _is_made(self, run: Attempt, part: Part) -> bool:
        if part != "image":
            return (self._files.job(run.job.id) / PRODUCTS[part]).exists()
        return run.job.image is not None and self._files.image(run.job.image).exists()

    def _perform(self, run: Attempt, part: Part, worker: Worker, folder: Path) -> dict[str, Any]:
        image = run.job.image
        while True:
            clear_asides(folder)
            task = Task(
                job=run.job.id,
                part=part,
                request=run.job.request,
                image=None if part == "image" or image is None else self._files.image(image),
                latents=folder / PRODUCTS["latents"] if part == "video" else None,
            )
            try:
                worker.perform(task, folder, functools.partial(self._hear, run), run.wish)
                return {"image": self._keep_image(run) if part == "image" else image}
            except WorkFailed as fault:
                return {"code": fault.code, "message": str(fault)}
            except WorkerLost as lost:
                attempts = self._insisting(lambda: self._store.count_attempt(run.job.id))
                run.job = dataclasses.replace(run.job, attempts=attempts)
                log.warning("job %s, attempt %d: %s", run.job.id, attempts, lost)
                if attempts >= MAX_ATTEMPTS:
                    return {"code": lost.code, "message": f"{lost}, the {attempts}th time under this job"}

    def _hear(self, run: Attempt, told: tuple[Any, ...]) -> None:
        match told:
            case ("begun",):
                run.begin()
            case ("step", stage, step, total):
                run.tell_step(stage, step, total)
            case ("preview", data):
                path = self._files.job(run.job.id) / PREVIEW
                with contextlib.suppress(OSError):  # a preview is no reason to fail
                    aside = path.with_name(f".{PREVIEW}")
                    aside.touch(mode=0o600)
                    aside.write_bytes(data)
                    aside.replace(path)
                    run.tell_preview()

    def _keep_image(self, run: Attempt) -> str:
        """Put a drawn still where the given ones are."""
        drawn = self._files.job(run.job.id) / PRODUCTS["image"]
        data = drawn.read_bytes()

        def keep() -> str:  # between attempts nothing is locked: a deletion may be what makes room
            try:
                with self._files.adding(data) as sha256:
                    assert sha256 is not None, "an image was given"
                    if not self._store.record(run.job.id, image=sha256):
                        raise WorkCancelled  # and the next sweep deletes what no job needs
                    return sha256
            except InsufficientDisk as full:
                raise WorkFailed("insufficient_disk", str(full)) from None

        sha256 = self._insisting(keep)
        drawn.unlink()
        return sha256

    def _fail(self, job_id: str, failure: Failure, defect: Exception | None = None) -> None:
        """A job fails, unless it was cancelled or deleted meanwhile; a defect of ours is told with its traceback."""
        if self._insisting(lambda: self._store.fail(job_id, failure, self._settings.keep_days * DAY, as_runner=True)):
            log.warning("job %s failed: %s: %s", job_id, failure.code, failure.message, exc_info=defect)

    def _after(self, job_id: str) -> None:
        """Delete what only the work needed, all of it where the job is gone, and tell who watches."""
        try:
            job = self._insisting(lambda: self._store.get(job_id))
        except JobNotFound:
            self._files.drop_job(job_id)
            self._watchers.publish(job_id, None)
            return
        if job.finished:
            folder = self._files.job(job_id)
            for name in (PRODUCTS["latents"], PRODUCTS["image"], PREVIEW):
                (folder / name).unlink(missing_ok=True)
            if job.status == "failed":
                self._files.drop_job(job_id)
            if self._ended is not None:
                self._ended(job)
        self._watchers.publish(job_id, job)

    def _insisting(self, action: Callable[[], Result]) -> Result:
        """What must be done before a job goes on, tried until the database is there and has room.

        Raises:
            Requeued: where the queue closes before that.
        """
        pause = 0.1
        while True:
            try:
                return action()
            except (QueueUnavailable, InsufficientDisk) as error:
                log.warning("%s", error)
                if self._closing.wait(pause) or not threading.main_thread().is_alive():
                    raise Requeued from None
                pause = min(5.0, pause * 2)

    def _tell_of_waiting(self) -> None:
        """Tell who watches a job that isn't run here of its new place, or that it was cancelled or deleted anywhere."""
        watched = [job_id for job_id in self._watchers.watched() if job_id not in self._runs]
        before, self._places = self._places, {}
        if not watched:
            return
        there = {job.id: job for job in self._store.some(watched)}
        for job_id in watched:
            job = there.get(job_id)
            if job is None or job.finished:
                self._watchers.publish(job_id, job)
            elif job.status == "queued":  # what is begun tells of itself
                self._places[job_id] = job.queue_position
                if before.get(job_id) != job.queue_position:
                    self._watchers.publish(job_id, job)

    def _queue_again(self) -> None:
        """Queue the jobs that no one works on any more: DBOS forgets them, so that it begins them anew."""
        from dbos import DBOS

        for job_id in list(self._left):
            if job_id in self._runs:  # DBOS was only late
                self._left.discard(job_id)
                continue
            if DBOS.get_workflow_status(job_id) is not None:
                DBOS.cancel_workflow(job_id)
                DBOS.delete_workflow(job_id)
            if self._store.unclaim(job_id):
                log.info("job %s is queued again", job_id)
            else:  # it was cancelled or deleted meanwhile
                self._after(job_id)
            self._left.discard(job_id)

    def _reconcile(self) -> None:
        """No job stays in progress while no one works on it: such a job is queued again, or failed.

        DBOS may be about to begin one that it knows, so only one that was idle at the last look, too, is queued again.
        """
        from dbos import DBOS

        idle_before, self._idle = self._idle, set()
        for job in self._store.running():
            if job.id in self._runs or job.id in self._lent or job.id in self._left:
                continue
            status = DBOS.get_workflow_status(job.id)
            if status is None or status.status in ("CANCELLED", "SUCCESS"):
                # It died as it claimed or queued the job; or the job's record was restored from a backup.
                self._left.add(job.id)
            elif status.status not in ("PENDING", "ENQUEUED", "DELAYED"):
                self._fail(
                    job.id, Failure("interrupted", f"the server died {MAX_RECOVERIES} times over it, or lost track")
                )
                self._after(job.id)
            elif status.app_version != WORKFLOW_VERSION:
                self._files.drop_job(job.id)
                self._left.add(job.id)
            elif job.id in idle_before:
                self._left.add(job.id)
            else:
                self._idle.add(job.id)

    def _keep_house(self) -> None:
        """Delete what expired, and what DBOS noted of jobs that are done."""
        from dbos import DBOS

        for job_id in self._store.expired() if self._clock.is_trusted() else ():
            if remove(self._store, self._files, job_id, only_expired=True):
                self._watchers.publish(job_id, None)
                log.info("job %s expired", job_id)
        done = DBOS.list_workflows(
            status=["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"],
            load_input=False,
            load_output=False,
            limit=1000,
        )
        self._reconcile()
        self._clear_deleted()
        finished = [workflow.workflow_id for workflow in done if workflow.workflow_id not in self._runs]
        if finished:
            DBOS.delete_workflows(finished)
        self._store.check()

    def _sweep(self) -> None:
        """Finish what a crash interrupted, and report what is in the folder but in no record of the database."""
        self._clear_deleted()
        with self._files.deleting():
            known, wanted = self._store.everything()
            known |= {job_id for job_id, _ in self._store.deletions()}
            unknown = self._files.sweep(known, wanted)
        if unknown and unknown != self.unknown:
            log.warning(
                "%d entries of the data folder %s are in no record of the database and are kept: %s%s",
                len(unknown),
                self._files.root,
                ", ".join(unknown[:5]),
                ", …" if len(unknown) > 5 else "",
            )
        self.unknown = unknown

    def _clear_deleted(self) -> None:
        """Delete the files of jobs that were removed while nothing could do so, and those of none that still runs."""
        with self._claiming:
            busy = self._lent.keys() | self._runs.keys()
        with self._files.deleting():
            gone = [(job_id, image) for job_id, image in self._store.deletions() if job_id not in busy]
            for job_id, image in gone:
                self._files.drop_job(job_id)
                if image is not None and not self._store.needs(image):
                    self._files.drop_image(image)
            if gone:
                self._store.forget_deletions([job_id for job_id, _ in gone])
        self._store.refill_reserve()


def runs_elsewhere(store: JobTable, files: JobFiles) -> QueueUnavailable | None:
    """Why this folder can take no jobs: a process with another folder, which would not have their images, runs them."""
    # In this order: a runner in this folder holds the folder's lock whenever it holds the database's.
    if not store.has_runner() or files.has_runner():
        return None
    return QueueUnavailable(
        Message(
            "runs_elsewhere",
            "another server, with another data folder, runs the jobs of this server's database; send requests to that "
            "server, or start this one with the same data folder (KINEMA_DATA_DIR)",
        )
    )


def _is_full_disk(error: Exception) -> bool:
    """Whether a file, or SQLite beneath DBOS, found no room."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(error)


def _first_line(error: Exception) -> str:
    """What went wrong, without the statement and the values that SQLAlchemy adds."""
    return str(error).partition("\n")[0]


def _is_shortage(error: Exception) -> bool:
    """Whether the server ran out of something that it will have again: descriptors, memory, threads."""
    return (
        getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
        or isinstance(error, MemoryError)
        or "unable to open database file" in str(error)  # SQLite beneath DBOS, without a descriptor
    )


def remove(store: JobTable, files: JobFiles, job_id: str, *, only_expired: bool = False) -> bool:
    """Forget a job, and delete its files and its still unless another job needs it; whether it was there."""
    with files.deleting():
        gone = store.remove(job_id, only_expired=only_expired)
        if gone is None:
            return False
        if gone.status != "in_progress":  # else who runs it does so, once its worker has stopped
            files.drop_job(job_id)
        if gone.image is not None and not store.needs(gone.image):
            files.drop_image(gone.image)
    store.refill_reserve()
    return True


def drop_image(store: JobTable, files: JobFiles, image: str | None) -> None:
    """Delete a still whose job was not accepted, unless another job needs it."""
    if image is not None:
        with files.deleting():
            if not store.needs(image):
                files.drop_image(image)
