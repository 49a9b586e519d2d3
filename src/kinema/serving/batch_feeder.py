"""Runs batches: submits their lines to the queue in a window, and writes their results.

Only the process that runs the queue's jobs does this. Each step is stored, so another process can continue at any time:
a line's job has an idempotency key, which finds the job again if the process died before it was stored.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from kinema.errors import FileInUse, FileNotFound, JobNotFound, KinemaError
from kinema.jobs.file_table import new_file_id
from kinema.jobs.supervisor import Supervisor
from kinema.jobs.wall_clock import WallClock
from kinema.serving.batch_schemas import dropped_result, job_result
from kinema.serving.batch_validator import BatchValidator, report_problem
from kinema.serving.line_submitter import LineSubmitter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kinema.jobs import Job, Queue
    from kinema.jobs.batch_schema import Batch, BatchLine
    from kinema.serving.image_service import ImageService
    from kinema.settings import Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
HOUSEKEEPING_SECONDS = 60.0
# Lines that are in the queue at a time, at most, and lines that are submitted before other batches get their turn.
MAX_WINDOW = 500
MAX_TURN = 16


class BatchFeeder:
    """Runs the batches of a queue in threads of its own."""

    def __init__(self, settings: Settings, queue: Queue, images: ImageService) -> None:
        self._settings = settings
        self._queue = queue
        self._images = images
        self._table, self._file_table, self._files = queue.batches, queue.file_table, queue.batch_files
        self._window = min(MAX_WINDOW, max(1, settings.queue_size // 2))
        self._wake = threading.Event()
        self._clock = WallClock()
        self._last_housekeeping = time.monotonic()
        # When each batch and owner submitted lines last.
        self._served: dict[str, float] = {}
        self._lines = LineSubmitter(settings, queue, images, self._window, self._wake.set)
        # In a thread of its own, so that a large file does not delay other batches.
        self._validator = BatchValidator(settings, queue, self._wake.set)
        self._feeder = Supervisor("kinema-batches", self._feed, report_problem)
        self._stopping = self._feeder.stopping

    def start(self) -> None:
        """Start to run batches, whenever this process runs the queue's jobs."""
        self._validator.start()
        self._feeder.start()

    def close(self) -> None:
        """Stop; the batches continue at the next start."""
        self._stopping.set()
        self.wake()
        self._validator.close()
        self._feeder.join()
        self._lines.close()

    def wake(self) -> None:
        """Look for changes now."""
        self._wake.set()
        self._validator.wake()

    def _feed(self) -> None:
        while not self._stopping.is_set():
            if self._queue.ready:
                self._advance_all()
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _advance_all(self) -> None:
        """Advance each batch."""
        batches = [batch for batch in self._table.unfinished() if batch.status != "validating"]
        for batch, share in self._in_turns(batches):
            self._advance_one(batch, share)
        if time.monotonic() - self._last_housekeeping > HOUSEKEEPING_SECONDS:
            self._last_housekeeping = time.monotonic()
            self._do_housekeeping()

    def _in_turns(self, batches: list[Batch]) -> list[tuple[Batch, int]]:
        """Return batches and their share of the window, so that owners and their batches take turns.

        Those that submitted lines longest ago come first.
        """
        names = {batch.id for batch in batches} | {batch.owner for batch in batches}
        self._served = {name: at for name, at in self._served.items() if name in names}
        counts: Counter[str] = Counter()
        ranked = []
        for batch in sorted(batches, key=lambda batch: self._served.get(batch.id, 0)):
            ranked.append((counts[batch.owner], self._served.get(batch.owner, 0), batch))
            counts[batch.owner] += 1
        ranked.sort(key=lambda item: item[:2])
        return [(batch, max(1, self._window // (len(counts) * counts[batch.owner]))) for _, _, batch in ranked]

    def _advance_one(self, batch: Batch, share: int) -> None:
        """Advance a batch. An internal error in it does not stop the others."""
        try:
            self._advance(batch, share)
        except (KinemaError, OSError):  # of the database or the disk
            raise
        except Exception:
            log.exception("internal error in batch %s", batch.id)

    def _advance(self, batch: Batch, share: int) -> None:
        """Store the results of a batch's finished jobs, then start to submit more lines.

        When all lines have a result, end the batch.
        """
        if batch.status != "finalizing":
            self._collect(batch)
            if batch.ends_as == "completed" and batch.expires_at < time.time():
                self._table.stop(batch.id, "expired")
            batch = self._table.get(batch.id)
            if batch.ends_as != "completed":
                if not self._lines.stop(batch.id):
                    return
                self._give_up_lines(batch)
                batch = self._table.get(batch.id)
            elif batch.has_unfinished_lines:
                self._submit(batch, share)
                return
            if batch.has_unfinished_lines:
                return
            self._lines.stop(batch.id)
            self._table.begin_end(batch.id)
        self._end(self._table.get(batch.id))

    def _collect(self, batch: Batch) -> None:
        """Store the results of the lines whose jobs are finished."""
        while lines := self._table.ended(batch.id):
            self._table.finish_lines(batch.id, [self._result(batch, line) for line in lines])

    def _result(self, batch: Batch, line: BatchLine) -> tuple[int, bool, str]:
        try:
            job: Job | None = self._queue.get(line.job or "")
        except JobNotFound:
            job = None
        is_completed = job is not None and job.status == "completed"
        is_cancelled = job is not None and job.error is not None and job.error.code == "cancelled"
        if is_cancelled and batch.ends_as != "completed":
            return line.number, False, dropped_result(batch, line)
        return line.number, is_completed, job_result(batch, line, job)

    def _give_up_lines(self, batch: Batch) -> None:
        """Cancel the jobs of a cancelled or expired batch."""
        self._table.drop_pending(batch.id)
        for job_id in self._table.unfinished_jobs(batch.id):
            with contextlib.suppress(JobNotFound):
                self._queue.cancel(job_id)
        self._collect(batch)

    def _submit(self, batch: Batch, share: int) -> None:
        """Submit the next lines, while the batch has less than its share of jobs in the queue."""
        starting = self._lines.count(batch.id)
        all_free = self._window - self._table.count_submitted() - starting
        own_free = share - len(self._table.submitted(batch.id)) - starting
        if (free := min(all_free, own_free, MAX_TURN)) > 0:
            self._served[batch.id] = self._served[batch.owner] = time.monotonic()
            self._lines.submit(batch, free)

    # The end

    def _end(self, batch: Batch) -> None:
        """Write the files of a batch and set its final status."""
        output = self._write(batch, lambda line: line.state == "completed") if batch.completed else None
        errors = self._write(batch, lambda line: line.state != "completed") if batch.failed else None
        if self._table.end(batch, output, errors):
            log.info("batch %s %s: %d completed, %d failed", batch.id, batch.ends_as, batch.completed, batch.failed)

    def _write(self, batch: Batch, is_written: Callable[[BatchLine], bool]) -> tuple[str, int]:
        """Write a file with the results of lines; return its id and size."""
        file_id = new_file_id()
        lines: Iterable[BatchLine] = filter(is_written, self._table.results(batch.id))
        with self._files.create(file_id) as file:
            for line in lines:
                file.write((line.result or dropped_result(batch, line)).encode() + b"\n")
            size = file.tell()
        return file_id, size

    def _do_housekeeping(self) -> None:
        """Delete expired files and batches, and the files of interrupted uploads."""
        if self._clock.is_trusted():
            for file_id in self._file_table.expired():
                with contextlib.suppress(FileNotFound, FileInUse):  # deleted, or used by a new batch
                    self._file_table.remove(file_id, self._files.delete)
                    log.info("file %s expired", file_id)
            self._table.remove_expired()
        self._files.sweep(self._file_table.ids())
