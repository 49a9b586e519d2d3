"""One attempt to run a job: its parts on a worker, and its progress."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from kinema.errors import InsufficientDisk, QueueUnavailable
from kinema.jobs.eta import JobEta, JobSize
from kinema.jobs.job import PART_FILES, Failure, Job, Part, Task
from kinema.jobs.job_files import PREVIEW, delete_partial_files
from kinema.jobs.run_ends import Requeued, WorkCancelled, WorkerLost, WorkerReplaced, WorkFailed
from kinema.jobs.workflows import run_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kinema.jobs.eta import StageSpeeds
    from kinema.jobs.job_files import JobFiles
    from kinema.jobs.job_table import JobTable
    from kinema.jobs.job_traces import JobTraces
    from kinema.jobs.run_ends import NextAction
    from kinema.jobs.subscriptions import Subscriptions
    from kinema.jobs.worker import Worker
    from kinema.jobs.worker_run import Run

log = logging.getLogger(__name__)

# A job fails after this many worker processes died or hung while running it.
MAX_ATTEMPTS = 3
PARTS: tuple[Part, ...] = ("image", "latents", "video")
# Minimum intervals at which progress is published to subscribers and stored in the table.
PUBLISH_SECONDS = 0.25
RECORD_SECONDS = 1.0
# At most so long before the end of denoising, a worker gets its next job. To claim and prepare it takes less.
LEAD_SECONDS = 2.0
_IMAGE_MISSING = (
    "its image is not in the data folder, or store, of the server that now runs the database's jobs; send the request "
    "again, to that server"
)

Result = TypeVar("Result")


class Attempt:
    """A job while this process runs it."""

    def __init__(
        self,
        job: Job,
        speeds: StageSpeeds,
        table: JobTable,
        files: JobFiles,
        subscriptions: Subscriptions,
        traces: JobTraces,
        closing: threading.Event,
    ) -> None:
        self.job = job
        self.title, self.pinned = job.title, job.pinned  # may change while the job runs
        self.cancelled = threading.Event()
        self._text_to_image = job.request.prompt is not None
        self._closing = closing
        self._table = table
        self._files = files
        self._folder = files.job(job.id)
        self._subscriptions = subscriptions
        self._traces = traces
        self._began: dict[str, float] = {}  # when a worker began with each part, in seconds since 1970
        self._eta = JobEta(JobSize.of(job), speeds, job.stage_durations)
        self._run_of_parts: Run | None = None  # the parts that a worker process has got, and that are not all saved
        self._on_nearly_done: Callable[[], None] = lambda: None
        self._stage_began = 0.0
        self._published_at = 0.0
        self._recorded_at = time.monotonic()

    def snapshot(self) -> Job:
        """Return the current state of the job."""
        eta = self._eta
        return dataclasses.replace(
            self.job,
            title=self.title,
            pinned=self.pinned,
            stage=eta.stage,
            step=eta.step,
            total=eta.total,
            progress=eta.percent,
            eta=eta.eta(),
            stage_durations=dict(eta.durations),
        )

    def run(self, worker: Worker, on_nearly_done: Callable[[], None]) -> Failure | None:
        """Run the job's parts in order; return why it failed, or None.

        Args:
            worker: Runs the parts.
            on_nearly_done: Called near the end of denoising, once or several times: the worker can get the next job,
                and then it does not wait between two jobs.

        Raises:
            WorkCancelled: the job was cancelled or deleted.
            Requeued: the queue closes, or the worker can't be started.
        """
        self._on_nearly_done = on_nearly_done
        # The parts depend on the request only: DBOS requires the same steps in the same order when it resumes a job.
        for part in PARTS if self._text_to_image else PARTS[1:]:
            result = run_step(part, self._run_recorded_part, part, worker)
            if "code" in result:
                return Failure(result["code"], result["message"])
            self.job = dataclasses.replace(self.job, image=result["image"])
        return None

    def _run_recorded_part(self, part: Part, worker: Worker) -> dict[str, Any]:
        """Run a part and store the job's progress, which fails once another process may run the jobs.

        Without that, a process that was frozen could still tell DBOS that it has done the part.
        """
        result = self._run_part(part, worker)
        retry(self._record, self._closing)
        return result

    def _run_part(self, part: Part, worker: Worker) -> dict[str, Any]:
        """Run a part; return what DBOS stores: the hash of the image, or code and message of the failure.

        The video is available to all servers before DBOS and the table know that it is made.
        """
        result = self._make_part(part, worker)
        if part == PARTS[-1] and "code" not in result:
            self._on_nearly_done()  # the worker need not wait for the upload
            self._try_until_done(lambda: self._files.publish_video(self.job.id))
        return result

    def _make_part(self, part: Part, worker: Worker) -> dict[str, Any]:
        """Make the output of a part.

        Missing outputs of earlier parts are created again. They are missing if a server with another data folder ran
        those parts.
        """
        self._folder.mkdir(exist_ok=True, mode=0o700)
        if not self._is_on_worker(part) and self._has_output(part):  # the job was requeued after this part
            return {"image": self.job.image}
        for earlier in PARTS[: PARTS.index(part)]:
            if self._has_output(earlier):
                continue
            if earlier == "image" and not self._text_to_image:
                return {"code": "interrupted", "message": _IMAGE_MISSING}
            result = self._make_part(earlier, worker)
            if "code" in result:
                return result
            self.job = dataclasses.replace(self.job, image=result["image"])
        if part != "image" and not self._has_last_image():
            return {"code": "interrupted", "message": _IMAGE_MISSING}
        return self._run_on_worker(part, worker)

    def _is_on_worker(self, part: Part) -> bool:
        """Whether a worker process has got the part: its reports are to be read, even if its output exists."""
        return self._run_of_parts is not None and part in self._run_of_parts.parts

    def _has_output(self, part: Part) -> bool:
        if part != "image":
            return (self._folder / PART_FILES[part]).exists()
        image = self.job.image
        if image is None:
            return False
        return self._try_until_done(lambda: self._files.find_image(image, self.job.id)) is not None

    def _has_last_image(self) -> bool:
        """Return whether the image at which the video ends is here, if there is one."""
        image = self.job.last_image
        if image is None:
            return True
        return self._try_until_done(lambda: self._files.find_image(image, self.job.id, is_last=True)) is not None

    def _try_until_done(self, action: Callable[[], Result]) -> Result:
        """Call an action with files until the store is available.

        Raises:
            WorkCancelled: the job was cancelled or deleted.
            Requeued: the queue closes.
        """

        def act() -> Result:
            if self._next_action() == "cancel":
                raise WorkCancelled
            return action()

        return retry(act, self._closing)

    def _run_on_worker(self, part: Part, worker: Worker) -> dict[str, Any]:
        image = self.job.image
        while True:
            try:
                if not self._is_on_worker(part):
                    delete_partial_files(self._folder)
                    self._run_of_parts = worker.submit(self._tasks_from(part), self._folder, self._next_action)
                assert self._run_of_parts is not None
                with self._traced(part, worker):
                    self._run_of_parts.wait_for(part, self._on_report, self._next_action)
                return {"image": self._store_generated_image() if part == "image" else image}
            except WorkerReplaced as error:
                log.info("job %s: its worker ended: %s", self.job.id, error)
            except WorkFailed as error:
                return {"code": error.code, "message": str(error)}
            except WorkerLost as error:
                attempts = retry(lambda: self._table.count_attempt(self.job.id), self._closing)
                self.job = dataclasses.replace(self.job, attempts=attempts)
                log.warning("job %s, attempt %d: %s", self.job.id, attempts, error)
                if attempts >= MAX_ATTEMPTS:
                    return {"code": error.code, "message": f"{error} (attempt {attempts} of {MAX_ATTEMPTS})"}
            self._run_of_parts = None

    @contextlib.contextmanager
    def _traced(self, part: Part, worker: Worker) -> Iterator[None]:
        """Record a part's span, from the worker's report that it began with it."""
        failure: str | None = None
        try:
            yield
        except (WorkFailed, WorkerLost) as error:
            failure = error.code
            raise
        except (WorkCancelled, WorkerReplaced, Requeued) as error:
            failure = {WorkCancelled: "cancelled", Requeued: "requeued"}.get(type(error), "worker_replaced")
            raise
        finally:
            if (began := self._began.pop(part, None)) is not None:
                self._traces.part(self.job, part, began, worker.state.place or worker.device, failure)

    def _tasks_from(self, part: Part) -> tuple[Task, ...]:
        """Return the tasks for this part and, without waiting for its file, those after it."""
        parts = PARTS[PARTS.index(part) :] if part != "image" else (part,)  # a generated image is stored in between
        image, last_image, latents = self.job.image, self.job.last_image, self._folder / PART_FILES["latents"]
        second = None if last_image is None else self._files.image(last_image)
        is_extension = self.job.extend is not None
        return tuple(
            Task(
                job=self.job.id,
                part=name,
                request=self.job.request,
                image=None if name == "image" or image is None else self._files.image(image),
                latents=latents if name == "video" else None,
                last_image=None if name == "image" or is_extension else second,
                source_video=second if is_extension else None,
            )
            for name in parts
        )

    def _store_generated_image(self) -> str:
        """Move the generated image to the folder of images, and return its hash."""
        generated = self._folder / PART_FILES["image"]
        data = generated.read_bytes()

        def store() -> str:  # holds no lock between retries, so that a deletion can free disk space
            try:
                with self._files.add_images(self.job.id, data) as (sha256, _):
                    assert sha256 is not None, "data is not None"
                    if not self._table.record(self.job.id, image=sha256):
                        raise WorkCancelled  # the next sweep deletes the image
                    return sha256
            except InsufficientDisk as error:
                raise WorkFailed("insufficient_disk", str(error)) from None

        sha256 = retry(store, self._closing)
        generated.unlink()
        return sha256

    def _on_report(self, report: tuple[Any, ...]) -> None:
        """Handle a report of the worker process."""
        match report:
            case ("started", part):
                self._began[part] = time.time()
                self._eta.start_part()
                self._publish()
                self._stage_began = time.monotonic()
                if part == PARTS[-1]:
                    self._on_nearly_done()
            case ("step", stage, step, total):
                self._record_step(stage, step, total)
                if stage == "denoise" and self._is_nearly_done(step, total):
                    self._on_nearly_done()
            case ("preview", data):
                self._store_preview(self._folder / PREVIEW, data)

    def _is_nearly_done(self, step: int, total: int) -> bool:
        """Return whether denoising is in its last fifth and ends within LEAD_SECONDS."""
        step_seconds = (time.monotonic() - self._stage_began) / step
        return total - step <= min(total / 5, LEAD_SECONDS / step_seconds)

    def _record_step(self, stage: str, step: int, total: int) -> None:
        is_new_stage = stage != self._eta.stage
        self._eta.record_step(stage, step, total)
        now = time.monotonic()
        if is_new_stage or step == total or now - self._published_at >= PUBLISH_SECONDS:
            self._published_at = now
            self._publish()

    def _store_preview(self, path: Path, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a missing preview does not fail the job
            partial = path.with_name(f".{PREVIEW}")
            partial.touch(mode=0o600)
            partial.write_bytes(data)
            partial.replace(path)
            self._files.publish_preview(self.job.id, data)
            self.job = dataclasses.replace(self.job, previews=self.job.previews + 1)
            self._publish()

    def _publish(self) -> None:
        self._subscriptions.publish(self.job.id, self.snapshot())

    def check_soon(self) -> None:
        """Store the progress with the next report, which finds out whether the job was cancelled or deleted."""
        self._recorded_at = -math.inf

    def _next_action(self) -> NextAction:
        """Return whether the work continues, and store its progress every RECORD_SECONDS.

        If that fails because the job is no longer running, another process has cancelled or deleted it.
        """
        # The interpreter waits for its threads at exit, so they must end even if the queue was not closed.
        if self._closing.is_set() or not threading.main_thread().is_alive():
            return "requeue"
        if not self.cancelled.is_set() and time.monotonic() - self._recorded_at >= RECORD_SECONDS:
            self._recorded_at = time.monotonic()
            try:
                if not self._record():
                    self.cancelled.set()
            except (QueueUnavailable, InsufficientDisk) as error:
                log.warning("job %s: %s", self.job.id, error, extra={"repeats": True})
        return "cancel" if self.cancelled.is_set() else "continue"

    def _record(self) -> bool:
        """Store the progress; return whether the job is still running."""
        job = self.snapshot()
        return self._table.record(
            job.id,
            stage=job.stage,
            step=job.step,
            total=job.total,
            progress=job.progress,
            eta=job.eta,
            stage_durations=job.stage_durations,
            previews=job.previews,
        )


def retry(action: Callable[[], Result], closing: threading.Event) -> Result:
    """Call `action` until the database is available and its disk has space; return its result.

    Raises:
        Requeued: `closing` is set before that.
    """
    pause = 0.1
    while True:
        try:
            return action()
        except (QueueUnavailable, InsufficientDisk) as error:
            log.warning("%s", error)
            if closing.wait(pause) or not threading.main_thread().is_alive():
                raise Requeued from None
            pause = min(5.0, pause * 2)
