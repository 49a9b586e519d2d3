"""The locks that let one process at a time run the jobs of a database and a data folder."""

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
    from typing import IO

    from kinema.jobs.job_files import JobFiles
    from kinema.jobs.queue_database import QueueDatabase

RETRY_SECONDS = 0.25
# How often the database's lock is renewed.
RENEWAL_SECONDS = 1.0


class SchedulerLock:
    """The locks of a database and a data folder, which are held together."""

    def __init__(self, database: QueueDatabase, files: JobFiles) -> None:
        self._database = database
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
                    acquired = self._try_acquire(file, attempt)
                    if acquired:
                        locks.push(attempt.pop_all())
                error = None if acquired else scheduled_elsewhere(self._database, self._files)
                on_retry(None if error is None else str(error))
                if not acquired:
                    stopping.wait(RETRY_SECONDS)
            yield acquired

    def _try_acquire(self, file: IO[bytes], attempt: contextlib.ExitStack) -> bool:
        """Try once to take both locks until `attempt` is closed. A process that waits holds neither for long.

        A frozen process keeps the folder's lock. On PostgreSQL its lease expires, and another one can do without the
        lock: the frozen process can't write to the database any more, and equal jobs write equal files.
        """
        is_sole_in_folder = try_lock(file, fcntl.LOCK_EX)
        if is_sole_in_folder:
            attempt.callback(fcntl.flock, file, fcntl.LOCK_UN)
        elif not self._database.has_lease:
            return False
        folder = self._files.folder_id() if self._database.has_lease else ""
        return attempt.enter_context(self._database.sole_scheduler(folder, is_sole_in_folder=is_sole_in_folder))

    @contextlib.contextmanager
    def monitor(self, workers: Callable[[], str], on_lost: Callable[[], None]) -> Iterator[None]:
        """Within the context, renew the database's lock every RENEWAL_SECONDS; call `on_lost` once if it is lost.

        Args:
            workers: Returns what each worker does, as JSON, for other processes.
            on_lost: Called in another thread.
        """
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(RENEWAL_SECONDS):
                if not self._database.keep_scheduling(workers()):
                    on_lost()
                    return

        thread = threading.Thread(target=renew, name="kinema-scheduler-lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def scheduled_elsewhere(database: QueueDatabase, files: JobFiles) -> QueueUnavailable | None:
    """Return an error if a process with another data folder runs the database's jobs, else None.

    That process would not have the images of jobs that are submitted with this folder.
    """
    if files.is_shared or not database.has_scheduler() or database.is_scheduled_with(files):
        return None
    return QueueUnavailable(
        Message(
            "runs_elsewhere",
            "another server, with another data folder, runs the jobs of this server's database; send requests to that "
            "server, or start this one with the same data folder (KINEMA_DATA_DIR)",
        )
    )
