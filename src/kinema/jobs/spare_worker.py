"""A spare worker process, which has imported the libraries, so that a worker that ended is replaced sooner."""

from __future__ import annotations

import logging
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

import psutil

from kinema.jobs.local_worker import LocalWorker

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

# A spare is started while this much memory is available. It uses a fraction of it, but must not use the last.
MIN_FREE_BYTES = 8 * 10**9
POLL_SECONDS = 0.5
# Pause after a spare ended by itself or could not be started; perhaps memory is short.
RETRY_SECONDS = 600.0
_IMPORT_SECONDS = 600.0


class SpareWorker:
    """Keeps one spare process of this machine for the next worker that starts.

    Args:
        work: Import path of the work.
        is_wanted: Whether a spare may be started now; not while workers start.
    """

    def __init__(self, work: str, is_wanted: Callable[[], bool]) -> None:
        self._work, self._is_wanted = work, is_wanted
        self._lock = Lock()
        self._process: LocalWorker | None = None  # that can be taken
        self._stopping = Event()
        self._thread: Thread | None = None

    @property
    def pid(self) -> int | None:
        """The id of the process that can be taken, if there is one."""
        with self._lock:
            return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Keep a spare from now on."""
        self._stopping.clear()
        # A process ends with the thread that started it, also once it is a worker, so the thread lasts until `close`.
        self._thread = Thread(target=self._keep, name="kinema-spare-worker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the spare. Close the workers first: those that were spares end with it."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def launch(self, work: str, device: str) -> LocalWorker:
        """Return a worker process on a device: the spare, or a new one.

        Raises:
            OSError: the process could not be started.
        """
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            try:
                process.begin(device)
            except OSError:  # it has just ended
                _end(process)
            else:
                return process
        return LocalWorker(work, device)

    def _keep(self) -> None:
        """Keep a spare until `close`."""
        while not self._stopping.is_set():
            try:
                if self._is_wanted() and psutil.virtual_memory().available >= MIN_FREE_BYTES:
                    self._hold_one()
                pause = POLL_SECONDS
            except Exception as error:  # noqa: BLE001 - only a later restart of a worker takes longer
                log.warning("there is no spare worker for %g seconds: %s", RETRY_SECONDS, error)
                pause = RETRY_SECONDS
            self._stopping.wait(pause)

    def _hold_one(self) -> None:
        """Start a process, and hold it until it is taken.

        Raises:
            OSError: it could not be started, or it ended.
        """
        process, is_offered = LocalWorker(self._work, None), False
        try:
            self._wait_for_imports(process)
            with self._lock:
                self._process, is_offered = process, True
            while not self._stopping.wait(POLL_SECONDS):
                with self._lock:
                    if self._process is None:
                        return
                    if process.wait_for_message(0):  # its end, since it has nothing else to say
                        raise OSError(f"it ended: {_end(process)}")
        finally:
            with self._lock:
                is_taken, self._process = is_offered and self._process is None, None
            if not is_taken:
                _end(process)

    def _wait_for_imports(self, process: LocalWorker) -> None:
        """Wait until the process can be used, or until `close`.

        Raises:
            OSError: it ended, could not import the work, or takes too long.
        """
        for _ in range(int(_IMPORT_SECONDS / POLL_SECONDS)):
            if process.wait_for_message(POLL_SECONDS) or self._stopping.is_set():
                break
        else:
            raise OSError(f"it did not import its libraries within {_IMPORT_SECONDS:g} seconds")
        if self._stopping.is_set():
            return
        try:
            message = process.receive()
        except EOFError:
            raise OSError(f"it ended: {_end(process)}") from None
        if message != ("spare",):
            raise OSError(f"it can't be used: {message[-1]}")


def _end(process: LocalWorker) -> str:
    """Kill the process unless it has ended, and return how it ended."""
    process.kill()
    return process.wait()
