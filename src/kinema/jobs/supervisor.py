"""Threads that survive exceptions: the action runs again after a growing pause."""

from __future__ import annotations

import random
import time
from threading import Event, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 10.0
# After a run that lasts at least this long, the pauses start from FIRST_PAUSE_SECONDS again.
STEADY_SECONDS = 10.0


class Supervisor:
    """A thread that repeats `action` until it is stopped. No exception ends it.

    It pauses after an exception, and from the second of consecutive short runs on. `on_failure` is called with the
    exception and the seconds until the next attempt.
    """

    def __init__(self, name: str, action: Callable[[], None], on_failure: Callable[[Exception, float], None]) -> None:
        self.stopping = Event()
        self._name = name
        self._action = action
        self._on_failure = on_failure
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self.stopping.clear()
        thread = Thread(target=self._run, name=self._name, daemon=True)
        thread.start()
        self._thread = thread

    def join(self) -> None:
        """Wait until the thread ends. Set `stopping` first."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        short_runs = 0
        while not self.stopping.is_set():
            started_at = time.monotonic()
            try:
                self._action()
                error = None
            except Exception as raised:  # noqa: BLE001 - any error is reported and retried
                error = raised
            short_runs = short_runs + 1 if time.monotonic() - started_at < STEADY_SECONDS else 1
            pause = 0.0 if error is None and short_runs == 1 else pause_after(short_runs)
            if error is not None and not self.stopping.is_set():
                self._on_failure(error, pause)
            self.stopping.wait(pause)


def pause_after(attempts: int) -> float:
    """Return the pause after consecutive failed attempts: it doubles up to MAX_PAUSE_SECONDS, with jitter."""
    longest = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * (1 << min(attempts, 16)))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - not used for security
