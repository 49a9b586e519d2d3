"""Validates the input files of new batches, and adds their lines to the database."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kinema.errors import FileNotFound, KinemaError
from kinema.jobs.batch_schema import Batch, BatchLine, LineError
from kinema.jobs.supervisor import Supervisor
from kinema.serving.batch_lines import LineReader

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from kinema.jobs import Queue
    from kinema.settings import Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
INSERT_LINES = 500
# How long the lines of a batch are validated before other batches get their turn.
TURN_SECONDS = 0.2
# Files that are validated at a time: each takes up to 10 MB of memory.
MAX_OPEN = 16
MAX_OWN_OPEN = 4


@dataclass(slots=True)
class _Validation:
    """A file that is being validated."""

    lines: Generator[BatchLine | LineError]
    errors: list[LineError] = field(default_factory=list)
    total: int = 0


class BatchValidator:
    """Validates files in a thread of its own, while this process runs the queue's jobs. The files take turns.

    `on_validated` is called after each.
    """

    def __init__(self, settings: Settings, queue: Queue, on_validated: Callable[[], None]) -> None:
        self._settings = settings
        self._queue = queue
        self._on_validated = on_validated
        self._table, self._files = queue.batches, queue.batch_files
        self._open: dict[str, _Validation] = {}
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
        for batch_id in list(self._open):
            self._close(batch_id)

    def wake(self) -> None:
        """Look for new batches now."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not (self._queue.ready and self._advance_all()):
                self._wake.wait(POLL_SECONDS)
                self._wake.clear()

    def _advance_all(self) -> bool:
        """Validate a few lines of each new batch; return whether there is more to do at once.

        An error in one batch does not stop the others; that batch begins anew, and the last error is raised.
        """
        problem: KinemaError | OSError | None = None
        batches = {batch.id: batch for batch in self._table.unfinished() if batch.status == "validating"}
        for batch_id in set(self._open) - set(batches):  # cancelled
            self._close(batch_id)
        self._open_more(list(batches.values()))
        for batch_id in list(self._open):
            if self._stopping.is_set():
                return False
            try:
                is_complete = self._advance(batches[batch_id])
            except (KinemaError, OSError) as error:
                problem, is_complete = error, True
            if is_complete:
                self._close(batch_id)
                self._on_validated()
        if problem is not None:
            raise problem
        return bool(batches)

    def _open_more(self, batches: list[Batch]) -> None:
        """Begin to validate batches, as many as are allowed at a time. Each begins anew after an interruption."""
        owners = Counter(batch.owner for batch in batches if batch.id in self._open)
        for batch in batches:
            if len(self._open) >= MAX_OPEN:
                return
            if batch.id not in self._open and owners[batch.owner] < MAX_OWN_OPEN:
                self._table.clear_lines(batch.id)
                self._open[batch.id] = _Validation(self._check_file(batch.input_file))
                owners[batch.owner] += 1

    def _close(self, batch_id: str) -> None:
        self._open.pop(batch_id).lines.close()

    def _advance(self, batch: Batch) -> bool:
        """Validate the next lines of a batch, and add them or set it to failed; return whether all are validated."""
        validation = self._open[batch.id]
        lines: list[BatchLine] = []
        until = time.monotonic() + TURN_SECONDS
        is_complete = True
        for line in validation.lines:
            if isinstance(line, LineError):
                validation.errors.append(line)
            else:
                lines.append(line)
            if len(lines) == INSERT_LINES or time.monotonic() > until:
                is_complete = False
                break
        validation.total += len(lines)
        if not self._table.add_lines(batch.id, lines):  # cancelled
            return True
        if is_complete:
            self._finish(batch, validation)
        return is_complete

    def _finish(self, batch: Batch, validation: _Validation) -> None:
        if errors := validation.errors:
            self._table.fail(batch.id, errors)
            # Neither message nor name may be logged: they repeat the request, which may contain secrets.
            log.warning(
                "batch %s failed: %d errors, the first in line %s (%s)",
                batch.id, len(errors), errors[0].line, errors[0].code,
            )  # fmt: skip
        elif self._table.start(batch.id, validation.total):
            log.info("batch %s started, %d requests", batch.id, validation.total)

    def _check_file(self, file_id: str) -> Generator[BatchLine | LineError]:
        try:
            with self._files.open(file_id) as file:
                yield from LineReader(self._settings, file).check_all()
        except FileNotFound as error:
            yield LineError(error.code, str(error), "input_file_id", None)
        except (KinemaError, OSError):  # the file is read again later
            raise
        except Exception:
            log.exception("internal error while validating the file %s", file_id)
            yield LineError("internal_error", "internal error; see the server's log", None, None)


def report_problem(error: Exception, pause: float) -> None:
    """Log why batches wait."""
    if isinstance(error, KinemaError | OSError):
        log.warning("batches wait: %s; next attempt in %.1f seconds", error, pause, extra={"repeats": True})
    else:
        log.error("internal error in a batch; next attempt in %.1f seconds", pause, exc_info=error)
