"""The current state of jobs for those who follow them, whichever process runs the jobs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kinema.jobs.subscriptions import AsyncSubscription, Subscription

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from kinema.jobs.change_feed import Changes
    from kinema.jobs.job import Job
    from kinema.jobs.job_table import JobTable
    from kinema.jobs.scheduler import Scheduler
    from kinema.jobs.subscriptions import Subscriptions

# How often a subscription polls the database for jobs that another process runs.
POLL_SECONDS = 1.0


class JobUpdates:
    """Passes changes of jobs to subscribers: of this process, of others by notification, or by polling the table.

    Args:
        table: The jobs.
        subscriptions: To which the scheduler publishes too.
        scheduler: That of this process, if it has one.
        is_scheduling: Returns whether it runs the jobs now.
    """

    def __init__(
        self,
        table: JobTable,
        subscriptions: Subscriptions,
        scheduler: Scheduler | None,
        is_scheduling: Callable[[], bool],
    ) -> None:
        self._table = table
        self._subscriptions = subscriptions
        self._scheduler = scheduler
        self._is_scheduling = is_scheduling
        self._changes = table.database.changes
        self._positions_changed = False

    def open(self) -> None:
        """Receive notifications of other processes (PostgreSQL)."""
        if self._changes is not None:
            self._changes.open(self._on_changes, self._publish_positions)

    def close(self) -> None:
        """Receive no more notifications."""
        if self._changes is not None:
            self._changes.close()

    def live(self, job: Job) -> Job:
        """Return a job from the table with its current progress, which may not be stored yet."""
        return job if self._scheduler is None else self._scheduler.with_live_progress(job)

    def _get(self, job_id: str) -> Job:
        return self.live(self._table.get(job_id))

    def subscribe(self, job_id: str) -> Iterator[Job]:
        """Yield the job now and after each change, until it is finished or deleted.

        Raises:
            JobNotFound: no job has this id.
        """
        subscription = Subscription()
        with self._subscriptions.subscribe(job_id, subscription.put):
            job: Job | None = self._get(job_id)
            while job is not None:
                yield job
                if job.finished:
                    return
                job = self._wait_for_change(job, subscription)

    async def subscribe_async(self, job_id: str) -> AsyncIterator[Job]:
        """Like `subscribe`, but for an event loop; needs no thread per subscriber."""
        subscription = AsyncSubscription()
        with self._subscriptions.subscribe(job_id, subscription.put):
            job: Job | None = await asyncio.to_thread(self._get, job_id)
            while job is not None:
                yield job
                if job.finished:
                    return
                before = job
                while job is before:
                    try:
                        job = await subscription.wait(POLL_SECONDS)
                    except TimeoutError:
                        if self._polls:
                            job = await asyncio.to_thread(self._poll, before)

    def _wait_for_change(self, before: Job, subscription: Subscription) -> Job | None:
        while True:
            try:
                return subscription.wait(POLL_SECONDS)
            except TimeoutError:
                if (job := self._poll(before)) is not before:
                    return job

    @property
    def _polls(self) -> bool:
        """Whether subscriptions poll the database: another process runs the jobs, and sends no notifications."""
        return not self._is_scheduling() and (self._changes is None or not self._changes.is_live)

    def _poll(self, before: Job) -> Job | None:
        """Return the state of a job that another process runs: None if deleted, `before` itself if unchanged."""
        if not self._polls:
            return before
        found = self._table.get_many([before.id])
        return None if not found else before if found[0] == before else found[0]

    def _on_changes(self, changes: Changes) -> None:
        """Publish jobs that other processes changed to the subscribers of this process."""
        if self._scheduler is not None and not changes.only_progress:
            self._scheduler.note_changes(changes)
        self._positions_changed = self._positions_changed or not changes.only_progress
        self._publish([job_id for job_id in self._subscriptions.job_ids() if job_id in changes])

    def _publish_positions(self) -> None:
        """Publish new queue positions, in a process that does not run the jobs."""
        if self._positions_changed and not self._is_scheduling():
            self._positions_changed = False
            self._publish(self._subscriptions.job_ids(), only_queued=True)

    def _publish(self, job_ids: Sequence[str], *, only_queued: bool = False) -> None:
        found = {job.id: job for job in self._table.get_many(job_ids)} if job_ids else {}
        for job_id in job_ids:
            job = found.get(job_id)
            if job is None or not only_queued or job.status == "queued":
                self._subscriptions.publish(job_id, None if job is None else self.live(job))
