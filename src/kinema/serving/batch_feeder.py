"""Runs batches: submits their lines to the queue in a window, and writes their results.

Only the process that runs the queue's jobs does this. Each step is stored, so another process can continue at any time:
a line's job has an idempotency key, which finds the job again if the process died before it was stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from kinema.errors import (
    InsufficientDisk,
    InvalidImage,
    JobNotFound,
    JobUnfinished,
    KinemaError,
    QueueFull,
    QueueUnavailable,
    QuotaExceeded,
    ServerBusy,
)
from kinema.jobs.file_table import new_file_id
from kinema.jobs.supervisor import Supervisor
from kinema.jobs.wall_clock import WallClock
from kinema.media.fetch import FetchCancelled
from kinema.serving.batch_lines import LineReader
from kinema.serving.batch_schemas import dropped_result, job_result, rejected_result
from kinema.serving.batch_validator import BatchValidator, report_problem
from kinema.serving.decode_process import ClientGone
from kinema.serving.request_parsing import fetch_image
from kinema.serving.submission import prepare, submit
from kinema.serving.webhook_urls import check_webhook_url

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
# Threads that read, download and check the images of lines.
THREADS = 4
# As if a job was submitted an hour later, so that single requests do not wait for batches.
PRIORITY = -60
# The line is submitted again later.
_RETRIED = (QueueFull, QuotaExceeded, QueueUnavailable, InsufficientDisk, ServerBusy, FetchCancelled, ClientGone)
_SILENT = (QueueFull, QuotaExceeded, FetchCancelled, ClientGone)


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

    def wake(self) -> None:
        """Look for changes now."""
        self._wake.set()
        self._validator.wake()

    def _feed(self) -> None:
        with ThreadPoolExecutor(THREADS, "kinema-batch-lines") as pool:
            while not self._stopping.is_set():
                is_busy = self._queue.ready and self._advance_all(pool)
                if not is_busy:
                    self._wake.wait(POLL_SECONDS)
                    self._wake.clear()

    def _advance_all(self, pool: ThreadPoolExecutor) -> bool:
        """Advance each batch; return whether there may be more to do at once."""
        batches = [batch for batch in self._table.unfinished() if batch.status != "validating"]
        share = max(1, self._window // max(1, len(batches)))
        submitted = sum([self._advance_one(batch, share, pool) for batch in batches])
        if time.monotonic() - self._last_housekeeping > HOUSEKEEPING_SECONDS:
            self._last_housekeeping = time.monotonic()
            self._do_housekeeping()
        return submitted > 0

    def _advance_one(self, batch: Batch, share: int, pool: ThreadPoolExecutor) -> int:
        """Advance a batch. An internal error in it does not stop the others."""
        try:
            return self._advance(batch, share, pool)
        except (KinemaError, OSError):  # of the database or the disk
            raise
        except Exception:
            log.exception("internal error in batch %s", batch.id)
            return 0

    def _advance(self, batch: Batch, share: int, pool: ThreadPoolExecutor) -> int:
        """Store the results of a batch's finished jobs, then submit more lines; return how many.

        When all lines have a result, end the batch.
        """
        if batch.status != "finalizing":
            self._collect(batch)
            if batch.ends_as == "completed" and batch.expires_at < time.time():
                self._table.stop(batch.id, "expired")
            batch = self._table.get(batch.id)
            if batch.ends_as != "completed":
                self._give_up_lines(batch)
                batch = self._table.get(batch.id)
            elif batch.has_unfinished_lines:
                return self._submit(batch, share, pool)
            if batch.has_unfinished_lines:
                return 0
            self._table.begin_end(batch.id)
        self._end(self._table.get(batch.id))
        return 0

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

    def _submit(self, batch: Batch, share: int, pool: ThreadPoolExecutor) -> int:
        """Submit the next lines, while the batch has less than its share of jobs in the queue; return how many."""
        free = min(self._window - self._table.count_submitted(), share - len(self._table.submitted(batch.id)), MAX_TURN)
        if free <= 0:
            return 0
        lines = self._table.pending(batch.id, free)
        large: list[BatchLine] = []
        with contextlib.suppress(JobNotFound), self._files.open(batch.input_file) as file:
            reader = LineReader(self._settings, file)
            large = [line for line in lines if reader.is_large(line.position)]
        small = [line for line in lines if line not in large]
        submitted = sum(pool.map(lambda line: self._submit_line(batch, line), small))
        # One at a time, to limit memory.
        return submitted + sum(self._submit_line(batch, line) for line in large)

    def _submit_line(self, batch: Batch, line: BatchLine) -> bool:
        """Submit a line, or store why it can't be; return False if it has to wait."""
        try:
            job = self._submit_or_explain(batch, line)
        except _RETRIED as error:
            if not isinstance(error, _SILENT):
                log.warning("batch %s waits: %s", batch.id, error)
            return False
        except KinemaError as error:
            if isinstance(error, InvalidImage):
                error.param = error.param or "input_reference"
            if self._stopping.is_set():  # perhaps the reason: the decode process ends
                return False
            self._table.finish_lines(batch.id, [(line.number, False, rejected_result(batch, line, error))])
        else:
            self._table.set_job(batch.id, line.number, job.id)
        return True

    def _submit_or_explain(self, batch: Batch, line: BatchLine) -> Job:
        """Submit the job of a line; raise a `KinemaError` in place of any unexpected error but those of files."""
        try:
            return self._submit_job(batch, line)
        except (KinemaError, ClientGone, FetchCancelled):
            raise
        except OSError as error:
            raise ServerBusy(f"a file can't be read or written ({error.strerror}); trying again") from error
        except Exception as error:
            log.exception("internal error in line %d of batch %s", line.number, batch.id)
            raise KinemaError("internal error; see the server's log") from error

    def _submit_job(self, batch: Batch, line: BatchLine) -> Job:
        with self._files.open(batch.input_file) as file:
            request = LineReader(self._settings, file).read_at(line.position).request
        is_stopping = self._stopping.is_set
        key = batch.key(line.number)
        image = fetch_image(self._settings, request.image, is_stopping)
        submission = prepare(
            self._settings, request.fields, image, lambda data: self._images.inspect(data, is_stopping)
        )
        # An image that is downloaded again may differ, and random seeds do.
        fingerprint = hashlib.sha256(key.encode()).hexdigest()
        return submit(
            self._queue,
            self._settings,
            replace(submission, fingerprint=fingerprint),
            idempotency_key=key,
            title=request.title,
            caller=batch.owner,
            webhook_url=check_webhook_url(self._settings, request.webhook_url),
            priority=PRIORITY if request.priority is None else request.priority,
        )

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
                with contextlib.suppress(JobNotFound, JobUnfinished):  # deleted, or used by a new batch
                    self._file_table.remove(file_id, self._files.delete)
                    log.info("file %s expired", file_id)
            self._table.remove_expired()
        self._files.sweep(self._file_table.ids())
