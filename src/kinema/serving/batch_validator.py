"""Validates the input files of new batches, and adds their lines to the database."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from kinema.errors import JobNotFound, KinemaError
from kinema.jobs.batch_schema import Batch, BatchLine, LineError
from kinema.jobs.supervisor import Supervisor
from kinema.serving.batch_lines import LineReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kinema.jobs import Queue
    from kinema.settings import Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
INSERT_LINES = 500


class BatchValidator:
    """Validates files in a thread of its own, while this process runs the queue's jobs.

    `on_validated` is called after each.
    """

    def __init__(self, settings: Settings, queue: Queue, on_validated: Callable[[], None]) -> None:
        self._settings = settings
        self._queue = queue
        self._on_validated = on_validated
        self._table, self._files = queue.batches, queue.batch_files
        self._wake = threading.Event()
        self._supervisor = Supervisor("kinema-batch-files", self._run, report_problem)
        self._stopping = self._supervisor.stopping

    def start(self) -> None:
        """Start the thread."""
        self._supervisor.start()

    def close(self) -> None:
        """Stop; a file that is being validated is validated anew at the next start."""
        self._stopping.set()
        self.wake()
        self._supervisor.join()

    def wake(self) -> None:
        """Look for new batches now."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._queue.ready:
                for batch in self._table.unfinished():
                    if batch.status == "validating":
                        self._validate(batch)
                        self._on_validated()
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _validate(self, batch: Batch) -> None:
        """Add the lines of a batch's file, or set the batch to failed. Begins anew after an interruption."""
        self._table.clear_lines(batch.id)
        errors: list[LineError] = []
        lines: list[BatchLine] = []
        total = 0
        for line in self._check_file(batch.input_file):
            if self._stopping.is_set():
                return
            if isinstance(line, LineError):
                errors.append(line)
                continue
            lines.append(line)
            total += 1
            if len(lines) == INSERT_LINES:
                if not self._table.add_lines(batch.id, lines):  # cancelled
                    return
                lines.clear()
        if errors:
            self._table.fail(batch.id, errors)
            # Neither message nor name may be logged: they repeat the request, which may contain secrets.
            log.warning(
                "batch %s failed: %d errors, the first in line %s (%s)",
                batch.id, len(errors), errors[0].line, errors[0].code,
            )  # fmt: skip
        elif self._table.add_lines(batch.id, lines) and self._table.start(batch.id, total):
            log.info("batch %s started, %d requests", batch.id, total)

    def _check_file(self, file_id: str) -> Iterator[BatchLine | LineError]:
        try:
            with self._files.open(file_id) as file:
                yield from LineReader(self._settings, file).check_all()
        except JobNotFound as error:
            yield LineError(error.code, str(error), "input_file_id", None)
        except (KinemaError, OSError):  # the file is read again later
            raise
        except Exception:
            log.exception("internal error while validating the file %s", file_id)
            yield LineError("internal_error", "internal error; see the server's log", None, None)


def report_problem(error: Exception, pause: float) -> None:
    """Log why batches wait."""
    if isinstance(error, KinemaError | OSError):
        log.warning("batches wait: %s; next attempt in %.1f seconds", error, pause)
    else:
        log.error("internal error in a batch; next attempt in %.1f seconds", pause, exc_info=error)
