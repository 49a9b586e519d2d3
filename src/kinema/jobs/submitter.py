"""Submission of new jobs: what is checked before a job is stored, and why one is rejected."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from kinema.errors import QueueFull, QuotaExceeded
from kinema.jobs.deletion import delete_unused_images
from kinema.jobs.idempotency import check_same_request
from kinema.jobs.job import Job
from kinema.jobs.job_inserts import JobInserts, KeyTaken
from kinema.jobs.job_schema import workload_values
from kinema.jobs.owner_limits import LimitReached
from kinema.jobs.scheduler_lock import scheduled_elsewhere
from kinema.messages import Message
from kinema.values import Workload

if TYPE_CHECKING:
    from kinema.jobs.job_files import JobFiles
    from kinema.jobs.job_table import JobTable
    from kinema.jobs.job_traces import JobTraces
    from kinema.jobs.new_job import NewJob
    from kinema.jobs.owner_limits import OwnerLimits
    from kinema.jobs.scheduler import Scheduler
    from kinema.settings import Settings


class JobSubmitter:
    """Adds jobs to the queue, in any thread. `scheduler` is that of this process, if it has one."""

    def __init__(
        self, settings: Settings, table: JobTable, files: JobFiles, traces: JobTraces, scheduler: Scheduler | None
    ) -> None:
        self._settings = settings
        self._table, self._files = table, files
        self._traces = traces
        self._scheduler = scheduler
        self._inserts = JobInserts(table.database)
        self._was_full = False

    def submit(self, new: NewJob) -> Job:
        """Store a job with its images, and tell the scheduler.

        Raises:
            KinemaError: as `Queue.submit`.
        """
        if (job := self._find_by_key(new)) is not None:
            return job
        self._check_capacity()
        job_id = f"video_{secrets.token_hex(16)}"
        try:
            job = self._add(job_id, new)
        except KeyTaken:  # two calls with the same key at the same time
            self._files.delete_inputs(job_id)
            return self._find_by_key(new) or self.submit(new)
        if self._scheduler is not None:
            self._scheduler.wake()
        return job

    def _find_by_key(self, new: NewJob) -> Job | None:
        """Return the job that was submitted with the same key, or None."""
        found = None if new.idempotency_key is None else self._table.by_key(new.idempotency_key)
        if found is None or new.idempotency_key is None:
            return None
        job, stored_fingerprint = found
        check_same_request(new.idempotency_key, new.key_fingerprint(), stored_fingerprint)
        return job if self._scheduler is None else self._scheduler.with_live_progress(job)

    def _check_capacity(self) -> None:
        """Check what can be checked before the images are written."""
        self._files.check_free_space(self._settings.min_free_gb)
        is_scheduling = self._scheduler is not None and self._scheduler.ready.is_set()
        if not is_scheduling and (error := scheduled_elsewhere(self._table.database, self._files)):
            raise error
        if self._was_full and self._table.waiting() >= self._settings.queue_size:
            raise self._queue_full()

    def _add(self, job_id: str, new: NewJob) -> Job:
        """Store the images, then the row; without the row, delete the images."""
        values: dict[str, Any] = {
            "id": job_id,
            "title": new.request.prompt if new.title is None else new.title,
            "priority": new.priority,
            "pinned": new.pinned,
            "created_at": time.time(),
            "extend": new.extend,
        }
        workload = new.workload or Workload(new.request.work)
        with self._traces.submit(job_id, new.request, new.traceparent) as values["traceparent"]:
            with self._files.add_images(job_id, new.image, new.last_image) as images:
                values["image"], values["last_image"] = images
                position = self._insert(new, values | workload_values(workload))
            if not isinstance(position, int):  # the images' markers are deleted now
                delete_unused_images(self._table, self._files, job_id, images)
                raise position
        return Job(status="queued", request=new.request, workload=workload, queue_position=position, **values)

    def _insert(self, new: NewJob, values: dict[str, Any]) -> int | QueueFull | QuotaExceeded:
        """Store the row; return the position in the queue, or why there is no room."""
        columns = {
            "model": new.request.model,
            "owner": new.owner,
            "request": new.request.model_dump_json(),
            "idempotency_key": new.idempotency_key,
            "fingerprint": new.key_fingerprint(),
        }
        try:
            most = self._settings.queue_size
            position = self._inserts.add(values | columns, most, new.limits, new.webhook_url)
        except LimitReached as reached:
            self._was_full = False
            return self._limit_exceeded(reached, new.limits)
        self._was_full = position is None
        return self._queue_full() if position is None else position

    def _queue_full(self) -> QueueFull:
        """Return the error, with the expected seconds until a running job ends."""
        wait = self._expected_wait()
        return QueueFull(
            Message(
                "queue_full",
                "the queue is full: {most} jobs are waiting (KINEMA_QUEUE_SIZE); try again in {wait:.0f} seconds",
                most=self._settings.queue_size,
                wait=wait,
            ),
            wait,
        )

    def _limit_exceeded(self, reached: LimitReached, limits: OwnerLimits) -> QuotaExceeded:
        wait = self._expected_wait()
        if reached.kind == "jobs":
            message = Message(
                "too_many_waiting",
                "this API key has reached its limit of waiting jobs ({most}, KINEMA_KEY_WAITING_JOBS); try again in "
                "{wait:.0f} seconds",
                most=limits.jobs,
                wait=wait,
            )
        else:
            message = Message(
                "too_much_waiting",
                "this job and the unfinished ones of this API key exceed {most:,g} million pixels × frames × steps "
                "(KINEMA_KEY_WORK); try again in {wait:.0f} seconds, or choose a smaller size, fewer frames or fewer "
                "steps",
                most=limits.work,
                wait=wait,
            )
        return QuotaExceeded(message, wait)

    def _expected_wait(self) -> float:
        """Return the expected seconds until a running job ends."""
        running = [] if self._scheduler is None else self._scheduler.running()
        etas = [job.eta for job in running if job.eta is not None]
        recent = self._table.latest_completed(5)
        durations = [job.completed_at - job.started_at for job in recent if job.completed_at and job.started_at]
        mean = sum(durations) / len(durations) if durations else 30.0
        return max(1.0, min(etas, default=mean))
