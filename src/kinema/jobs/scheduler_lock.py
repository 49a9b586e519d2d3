"""The lock that lets one process at a time run the jobs of a database and a data folder."""

from __future__ import annotations

import contextlib
import fcntl
import threading
from typing import TYPE_CHECKING

from kinema.errors import QueueUnavailable
from kinema.jobs.job_files import try_lock
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kinema.jobs.job_files import JobFiles
    from kinema.jobs.job_table import JobTable

RETRY_SECONDS = 0.25
# How often it is checked that the database's lock is still held.
MONITOR_SECONDS = 1.0


class SchedulerLock:
    """The locks of a database and a data folder, which are held together."""

    def __init__(self, table: JobTable, files: JobFiles) -> None:
        self._table = table
        self._files = files

    @contextlib.contextmanager
    def acquire(self, stopping: threading.Event, on_retry: Callable[[str | None], None]) -> Iterator[bool]:
        """Wait for both locks and hold them until the context ends. Yield False if `stopping` is set before that.

        Args:
            stopping: Ends the wait.
            on_retry: Called after each attempt: with an error message if a server with another data folder runs the
                jobs, else with None.
        """
        with self._files.scheduler_lock.open("ab") as file, contextlib.ExitStack() as locks:
            acquired = False
            while not acquired and not stopping.is_set():
                with contextlib.ExitStack() as attempt:
                    # The holder of the database's lock always holds its folder's lock too, so that others can tell
                    # which folder is in use. A waiting process holds neither.
                    if not self._table.has_scheduler() and try_lock(file, fcntl.LOCK_EX):
                        attempt.callback(fcntl.flock, file, fcntl.LOCK_UN)
                        acquired = attempt.enter_context(self._table.sole_scheduler())
                    if acquired:
                        locks.push(attempt.pop_all())
                error = None if acquired else scheduled_elsewhere(self._table, self._files)
                on_retry(None if error is None else str(error))
                if not acquired:
                    stopping.wait(RETRY_SECONDS)
            yield acquired

    @contextlib.contextmanager
    def monitor(self, on_lost: Callable[[], None]) -> Iterator[None]:
        """Within the context, check the database's lock every MONITOR_SECONDS; call `on_lost` once if it is lost."""
        ended = threading.Event()

        def check() -> None:
            while not ended.wait(MONITOR_SECONDS):
                if not self._table.is_sole_scheduler():
                    on_lost()
                    return

        thread = threading.Thread(target=check, name="kinema-scheduler-lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def scheduled_elsewhere(table: JobTable, files: JobFiles) -> QueueUnavailable | None:
    """Return an error if a process with another data folder runs the database's jobs, else None.

    That process would not have the images of jobs that are submitted with this folder.
    """
    # In this order: a scheduler with this folder holds the folder's lock whenever it holds the database's.
    if not table.has_scheduler() or files.has_scheduler():
        return None
    return QueueUnavailable(
        Message(
            "runs_elsewhere",
            "another server, with another data folder, runs the jobs of this server's database; send requests to that "
            "server, or start this one with the same data folder (KINEMA_DATA_DIR)",
        )
    )
