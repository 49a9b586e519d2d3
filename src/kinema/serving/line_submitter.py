"""Submits the lines of batches to the queue, in threads that batches and their owners share fairly.

A line may wait half a minute for the host of its image, so the feeder of batches never waits for a line.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kinema.errors import (
    ContentRefused,
    InsufficientDisk,
    InvalidImage,
    KinemaError,
    QueueFull,
    QueueUnavailable,
    QuotaExceeded,
    ServerBusy,
)
from kinema.media.fetch import FetchCancelled
from kinema.serving.batch_lines import LineReader
from kinema.serving.batch_schemas import rejected_result
from kinema.serving.decode_process import ClientGone
from kinema.serving.request_parsing import fetch_images
from kinema.serving.submission import prepare, submit
from kinema.serving.webhook_urls import check_webhook_url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from kinema.jobs import Queue
    from kinema.jobs.batch_schema import Batch, BatchLine
    from kinema.serving.image_service import ImageService
    from kinema.settings import Settings

log = logging.getLogger(__name__)

THREADS = 16
# Threads that one batch uses at most, and lines that a thread submits before others get their turn.
BATCH_THREADS = 4
TURN_LINES = 4
# As if a job was submitted an hour later, so that single requests do not wait for batches.
PRIORITY = -60
# The line is submitted again later.
_RETRIED = (QueueFull, QuotaExceeded, QueueUnavailable, InsufficientDisk, ServerBusy, FetchCancelled, ClientGone)
_SILENT = (QueueFull, QuotaExceeded, FetchCancelled, ClientGone)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A few lines of a batch that a thread submits."""

    batch: Batch
    lines: Sequence[BatchLine]
    future: Future[bool]
    stop: threading.Event


class LineSubmitter:
    """Submits lines in the background, while at most `window` lines are in the queue.

    `on_progress` is called when there may be more to do. Only one thread may call the methods.
    """

    def __init__(
        self, settings: Settings, queue: Queue, images: ImageService, window: int, on_progress: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._images = images
        self._window = window
        self._on_progress = on_progress
        self._table, self._files = queue.batches, queue.batch_files
        self._pool = ThreadPoolExecutor(THREADS, "kinema-batch-lines")
        self._turns: list[_Turn] = []
        self._submitting = threading.Lock()
        self._large = threading.Lock()  # one large line at a time, to limit memory
        # The last line of each batch that can't be submitted yet, though lines after it may be.
        self._skipped: dict[str, int] = {}

    def close(self) -> None:
        """Stop; lines that are not submitted stay pending."""
        for turn in self._turns:
            turn.stop.set()
        self._pool.shutdown(cancel_futures=True)

    def count(self, batch_id: str | None = None) -> int:
        """Return the number of lines, of one batch or of all, that are being submitted.

        Raises:
            QueueUnavailable, InsufficientDisk: a line's job or result could not be stored; it is submitted again.
        """
        ended = [turn for turn in self._turns if turn.future.done()]
        self._turns = [turn for turn in self._turns if not turn.future.done()]
        for turn in ended:
            turn.future.result()
        return sum(len(turn.lines) for turn in self._turns if batch_id in (None, turn.batch.id))

    def stop(self, batch_id: str) -> bool:
        """Stop to submit lines of a batch; return whether none is being submitted any more."""
        for turn in self._turns:
            if turn.batch.id == batch_id:
                turn.stop.set()
        self._skipped.pop(batch_id, None)
        return not self.count(batch_id)

    def submit(self, batch: Batch, limit: int) -> None:
        """Start to submit up to `limit` more lines of a batch, if enough threads are free.

        An owner may use as many threads as are left for others: alone 8 of 16, two owners 8 and 4, and so on.
        """
        busy = {number for turn in self._turns if turn.batch.id == batch.id for number in _numbers(turn)}
        lines = [line for line in self._next_lines(batch, limit + len(busy)) if line.number not in busy][:limit]
        for start in range(0, len(lines), TURN_LINES):
            owners = Counter(turn.batch.owner for turn in self._turns)
            own = sum(turn.batch.id == batch.id for turn in self._turns)
            if own >= BATCH_THREADS or owners[batch.owner] >= THREADS - owners.total():
                return
            some, stop = lines[start : start + TURN_LINES], threading.Event()
            future = self._pool.submit(self._run_turn, batch, some, stop)
            self._turns.append(_Turn(batch, some, future, stop))
            future.add_done_callback(self._on_turn_end)

    def _next_lines(self, batch: Batch, limit: int) -> list[BatchLine]:
        """Return the next lines: those after the last one that has to wait, or else the first."""
        skipped = self._skipped.get(batch.id, 0)
        lines = self._table.pending(batch.id, limit, after=skipped)
        if not lines and skipped:
            del self._skipped[batch.id]
        return lines

    def _on_turn_end(self, future: Future[bool]) -> None:
        if not future.cancelled() and future.exception() is None and future.result():
            self._on_progress()

    def _run_turn(self, batch: Batch, lines: Sequence[BatchLine], stop: threading.Event) -> bool:
        """Submit lines until no line of the batch can be submitted; return whether there may be more to do at once."""
        has_progress = False
        for line in lines:
            if stop.is_set():
                return True
            try:
                self._submit_line(batch, line, stop)
            except _RETRIED as error:
                if not isinstance(error, _SILENT):
                    log.warning("batch %s waits: %s", batch.id, error, extra={"repeats": True})
                if not _is_about_line(error):
                    return has_progress or stop.is_set()
                self._skipped[batch.id] = max(line.number, self._skipped.get(batch.id, 0))
            else:
                has_progress = True
        return has_progress

    def _submit_line(self, batch: Batch, line: BatchLine, stop: threading.Event) -> None:
        """Submit a line, or store why it can't be.

        Raises:
            One of _RETRIED: it has to wait.
        """
        try:
            self._submit_or_explain(batch, line, stop)
        except _RETRIED:
            raise
        except KinemaError as error:
            if isinstance(error, ContentRefused | InvalidImage):
                error.param = error.param or "input_reference"
            if stop.is_set():  # perhaps the reason: the decode process ends
                return
            self._table.finish_lines(batch.id, [(line.number, False, rejected_result(batch, line, error))])

    def _submit_or_explain(self, batch: Batch, line: BatchLine, stop: threading.Event) -> None:
        """Submit the job of a line; raise a `KinemaError` in place of any unexpected error but those of files."""
        try:
            with self._files.open(batch.input_file) as file:
                reader = LineReader(self._settings, file)
                with self._large if reader.is_large(line.position) else contextlib.nullcontext():
                    self._submit_job(batch, line, reader, stop.is_set)
        except (KinemaError, ClientGone, FetchCancelled):
            raise
        except OSError as error:
            raise ServerBusy(f"a file can't be read or written ({error.strerror}); trying again") from error
        except Exception as error:
            log.exception("internal error in line %d of batch %s", line.number, batch.id)
            raise KinemaError("internal error; see the server's log") from error

    def _submit_job(self, batch: Batch, line: BatchLine, reader: LineReader, is_stopping: Callable[[], bool]) -> None:
        request = reader.read_at(line.position).request
        key = batch.key(line.number)
        image, last_image = fetch_images(self._settings, request, is_stopping)
        submission = prepare(
            self._settings, request.fields, image, lambda data: self._images.inspect(data, is_stopping), last_image
        )
        # An image that is downloaded again may differ, and random seeds do.
        fingerprint = hashlib.sha256(key.encode()).hexdigest()
        with self._submitting:  # so that the window is never exceeded
            if self._table.count_submitted() >= self._window:
                raise QueueFull("the window of the batches is full", 0)
            job = submit(
                self._queue,
                self._settings,
                replace(submission, fingerprint=fingerprint),
                idempotency_key=key,
                title=request.title,
                caller=batch.owner,
                webhook_url=check_webhook_url(self._settings, request.webhook_url),
                priority=PRIORITY if request.priority is None else request.priority,
            )
            self._table.set_job(batch.id, line.number, job.id)


def _numbers(turn: _Turn) -> list[int]:
    return [line.number for line in turn.lines]


def _is_about_line(error: Exception) -> bool:
    """Return whether another line of the batch, with less work, may be submitted."""
    return isinstance(error, QuotaExceeded) and getattr(error.args[0], "code", "") == "too_much_waiting"
