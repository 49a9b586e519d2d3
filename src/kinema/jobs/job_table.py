"""The table of jobs. Each state change is one guarded statement.

This table is the source of truth for jobs; DBOS only stores which parts of a running job are done.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from kinema.errors import InsufficientDisk, JobNotFound
from kinema.jobs.database import begun_again
from kinema.jobs.job import Failure, Job, JobPage
from kinema.jobs.job_schema import (
    COUNT_QUEUED,
    DELETIONS,
    IS_QUEUED,
    IS_RUNNING,
    JOBS,
    QUEUE_ORDER,
    TURN_ORDER,
    is_expired,
    job_from_row,
)
from kinema.jobs.positions import positions_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from kinema.jobs.job import Status
    from kinema.jobs.queue_database import QueueDatabase

# How many jobs of a loaded model may overtake a job.
MAX_PASSED = 3


class JobTable:
    """The jobs of a database. `JobInserts` adds new ones.

    Raises:
        QueueUnavailable, InsufficientDisk: by every method, as those of `QueueDatabase`.
    """

    def __init__(self, database: QueueDatabase) -> None:
        self.database = database

    def waiting(self) -> int:
        """Return the number of queued jobs."""
        with self.database.read() as connection:
            return connection.execute(COUNT_QUEUED).scalar_one()

    def by_key(self, key: str) -> tuple[Job, str] | None:
        """Return the job with an idempotency key and the fingerprint of its request, or None."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(JOBS).where(JOBS.c.idempotency_key == key)).mappings().all()
            jobs = self._jobs(rows, connection)
        return (jobs[0], rows[0]["fingerprint"]) if jobs else None

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            JobNotFound: no job has this id.
        """
        found = self.get_many([job_id])
        if not found:
            raise JobNotFound(f"there is no job {job_id!r}; it was deleted, has expired, or never existed")
        return found[0]

    def get_many(self, ids: Collection[str]) -> list[Job]:
        """Return the jobs with these ids, without those that do not exist."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(JOBS).where(JOBS.c.id.in_(ids))).mappings().all()
            return self._jobs(rows, connection)

    def _jobs(self, rows: Sequence[sa.RowMapping], connection: sa.Connection) -> list[Job]:
        """Return the jobs of rows of JOBS, the queued ones with their positions."""
        found = positions_of(connection, rows)
        return [job_from_row(row, found.get(row["seq"])) for row in rows]

    def page(self, after: str | None, limit: int, *, newest_first: bool) -> JobPage:
        """Return a page of jobs in order of submission, from the start or after the job with the id `after`."""
        query = sa.select(JOBS).order_by(JOBS.c.seq.desc() if newest_first else JOBS.c.seq).limit(limit + 1)
        with self.database.read() as connection:
            if after is not None:
                seq = connection.execute(sa.select(JOBS.c.seq).where(JOBS.c.id == after)).scalar()
                if seq is None:
                    raise JobNotFound(f"there is no job {after!r} (parameter after)")
                query = query.where(JOBS.c.seq < seq if newest_first else JOBS.c.seq > seq)
            rows = connection.execute(query).mappings().all()
            jobs = self._jobs(rows[:limit], connection)
        return JobPage(tuple(jobs), has_more=len(rows) > limit)

    @begun_again
    def claim(self, models: Collection[str | None]) -> tuple[str, str] | None:
        """Set the next queued job to in_progress. Return its id and model, or None if no job is queued.

        The job that waits longest, with its priority, decides about the priority; within it the owners take turns. A
        job of a loaded model may overtake the first job if it has the same priority, at most MAX_PASSED times.

        Args:
            models: The loaded model of each free worker; None for a worker without a model.
        """
        columns = (JOBS.c.id, JOBS.c.model, JOBS.c.priority, JOBS.c.passed)
        with self.database.write_as_scheduler() as connection:
            head = sa.select(JOBS.c.priority).where(IS_QUEUED).order_by(*QUEUE_ORDER).limit(1)
            priority = connection.execute(head).scalar()
            if priority is None:
                return None
            by_turn = sa.select(*columns).where(IS_QUEUED, JOBS.c.priority == priority).order_by(*TURN_ORDER).limit(1)
            first = connection.execute(by_turn).first()
            if first is None:  # cancelled in the meantime
                return None
            chosen = first
            if first.model not in models and None not in models and first.passed < MAX_PASSED:
                loaded = by_turn.where(JOBS.c.model.in_([model for model in models if model]))
                chosen = connection.execute(loaded).first() or first
            if chosen is not first:
                overtaken = JOBS.update().where(JOBS.c.id == first.id).values(passed=first.passed + 1)
                connection.execute(overtaken)
            started = {"status": "in_progress", "started_at": time.time()}
            claimed = connection.execute(JOBS.update().where(JOBS.c.id == chosen.id, IS_QUEUED).values(started))
            if claimed.rowcount != 1:
                return None
            self.database.notify(connection, chosen.id)
        return chosen.id, chosen.model

    def requeue(self, job_id: str) -> bool:
        """Queue a running job again at its former position; return whether it was running."""
        reset = {"started_at": None, "stage": None, "step": 0, "total": 0, "progress": 0, "eta": None}
        return self._update(job_id, IS_RUNNING, as_scheduler=True, status="queued", **reset)

    def running(self) -> list[Job]:
        """Return all jobs in progress."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(JOBS).where(IS_RUNNING)).mappings().all()
        return [job_from_row(row) for row in rows]

    def record(self, job_id: str, **values: Any) -> bool:
        """Store the progress of a running job; return whether it is still running."""
        if "stage_durations" in values:
            values["stage_durations"] = json.dumps(values["stage_durations"])
        return self._update(job_id, IS_RUNNING, as_scheduler=True, **values)

    def complete(self, job_id: str, keep_seconds: float) -> bool:
        """Set a running job to completed; return whether it was running."""
        now = time.time()
        expires = sa.case((JOBS.c.pinned, None), else_=now + keep_seconds)
        values = {"status": "completed", "progress": 100, "eta": None, "completed_at": now, "expires_at": expires}
        return self._update(job_id, IS_RUNNING, as_scheduler=True, **values)

    def fail(self, job_id: str, failure: Failure, keep_seconds: float, *, as_scheduler: bool = False) -> bool:
        """Set a queued or running job to failed, also for a cancel; return whether it was queued or running."""
        now = time.time()
        expires = sa.case((JOBS.c.pinned, None), else_=now + keep_seconds)
        error = {"error_code": failure.code, "error_message": failure.message}
        values = {"status": "failed", "eta": None, "completed_at": now, "expires_at": expires}
        return self._update(job_id, sa.or_(IS_QUEUED, IS_RUNNING), as_scheduler=as_scheduler, **values, **error)

    @begun_again
    def refuse(self, job_id: str, failure: Failure, keep_seconds: float) -> bool:
        """Set a running job to failed, forget its images and add it to `deletions`; return whether it was running."""
        now = time.time()
        values = {
            "status": "failed",
            "eta": None,
            "completed_at": now,
            "expires_at": sa.case((JOBS.c.pinned, None), else_=now + keep_seconds),
            "error_code": failure.code,
            "error_message": failure.message,
            "image": None,
            "last_image": None,
        }
        with self.database.write_as_scheduler() as connection:
            images = sa.select(JOBS.c.image, JOBS.c.last_image).where(JOBS.c.id == job_id, IS_RUNNING)
            row = connection.execute(images).first()
            update = JOBS.update().where(JOBS.c.id == job_id, IS_RUNNING).values(values)
            if row is None or connection.execute(update).rowcount != 1:
                return False
            deletion = {"job": job_id, "image": row.image, "last_image": row.last_image}
            connection.execute(self.database.insert(DELETIONS).values(deletion).on_conflict_do_nothing())
            self.database.notify(connection, job_id)
        return True

    def pin(self, job_id: str, keep_seconds: float, *, pinned: bool) -> bool:
        """Pin a job, or unpin it so that it expires `keep_seconds` from now; return whether it exists."""
        is_finished = JOBS.c.completed_at.is_not(None)
        expires = sa.null() if pinned else sa.case((is_finished, time.time() + keep_seconds), else_=None)
        return self._update(job_id, sa.true(), pinned=pinned, expires_at=expires)

    def rename(self, job_id: str, title: str) -> bool:
        """Change a job's title; return whether it exists."""
        return self._update(job_id, sa.true(), title=title)

    @begun_again
    def count_attempt(self, job_id: str) -> int:
        """Add one to the worker processes that died or hung while running a job; return the new count."""
        with self.database.write_as_scheduler() as connection:
            update = JOBS.update().where(JOBS.c.id == job_id).values(attempts=JOBS.c.attempts + 1)
            attempts = connection.execute(update.returning(JOBS.c.attempts)).scalar()
        return int(attempts or 0)

    def remove(self, job_id: str, *, only_expired: bool = False) -> RemovedJob | None:
        """Delete a job's row and add it to `deletions`; return None if there was none. Works on a full disk.

        Args:
            job_id: The job.
            only_expired: Only delete it if it has expired, since it may have been pinned in the meantime.
        """
        guard = is_expired() if only_expired else sa.true()
        try:
            return self._remove(job_id, guard)
        except InsufficientDisk:
            if not self.database.release_reserve():
                raise
            return self._remove(job_id, guard)

    @begun_again
    def _remove(self, job_id: str, guard: sa.ColumnElement[bool]) -> RemovedJob | None:
        delete = (
            JOBS.delete().where(JOBS.c.id == job_id, guard).returning(JOBS.c.status, JOBS.c.image, JOBS.c.last_image)
        )
        with self.database.write() as connection:
            row = connection.execute(delete).first()
            if row is None:
                return None
            deletion = {"job": job_id, "image": row.image, "last_image": row.last_image}
            connection.execute(self.database.insert(DELETIONS).values(deletion).on_conflict_do_nothing())
            self.database.notify(connection, job_id)
        return RemovedJob(row.status, (row.image, row.last_image))

    def deletions(self) -> list[tuple[str, tuple[str | None, str | None]]]:
        """Return the id and images of each deleted job whose files may still exist."""
        with self.database.read() as connection:
            return [(row.job, (row.image, row.last_image)) for row in connection.execute(sa.select(DELETIONS))]

    def clear_deletions(self, jobs: Collection[str]) -> None:
        """Remove jobs from `deletions`: their files are deleted."""
        with self.database.write() as connection:
            connection.execute(DELETIONS.delete().where(DELETIONS.c.job.in_(jobs)))

    def expired(self) -> list[str]:
        """Return the ids of all expired jobs."""
        with self.database.read() as connection:
            return list(connection.execute(sa.select(JOBS.c.id).where(is_expired())).scalars())

    def is_image_used(self, image: str) -> bool:
        """Return whether any job has this image, at its beginning or end."""
        return self.job_with_image(image) is not None

    def job_with_image(self, image: str) -> tuple[str, bool] | None:
        """Return the id of any job that has this image, and whether it is its last image; None if there is no job."""
        with self.database.read() as connection:
            for is_last, column in enumerate((JOBS.c.image, JOBS.c.last_image)):
                query = sa.select(JOBS.c.id).where(column == image).limit(1)
                if (job_id := connection.execute(query).scalar()) is not None:
                    return job_id, bool(is_last)
        return None

    def ids_and_images(self) -> tuple[set[str], set[str]]:
        """Return the ids of all jobs and the hashes of their images."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(JOBS.c.id, JOBS.c.image, JOBS.c.last_image)).all()
        return {row.id for row in rows}, _images_of(rows)

    def expected_files(self) -> set[str]:
        """Return what the data folder should contain: ids of all jobs with a video, and images of all jobs."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(JOBS.c.id, JOBS.c.image, JOBS.c.last_image, JOBS.c.status)).all()
        completed = {row.id for row in rows if row.status == "completed"}
        return completed | _images_of(rows)

    def latest_completed(self, count: int) -> list[Job]:
        """Return the most recently completed jobs, newest first."""
        query = sa.select(JOBS).where(JOBS.c.status == "completed")
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(JOBS.c.completed_at.desc()).limit(count)).mappings().all()
        return [job_from_row(row) for row in rows]

    @begun_again
    def _update(self, job_id: str, guard: sa.ColumnElement[bool], *, as_scheduler: bool = False, **values: Any) -> bool:
        with self.database.write_as_scheduler() if as_scheduler else self.database.write() as connection:
            is_changed = (
                connection.execute(JOBS.update().where(JOBS.c.id == job_id, guard).values(values)).rowcount == 1
            )
            if is_changed:
                self.database.notify(connection, job_id, is_progress="step" in values and "status" not in values)
        return is_changed


def _images_of(rows: Sequence[Any]) -> set[str]:
    return {image for row in rows for image in (row.image, row.last_image) if image is not None}


@dataclass(frozen=True, slots=True)
class RemovedJob:
    """State of a job at its removal."""

    status: Status
    images: tuple[str | None, str | None]
