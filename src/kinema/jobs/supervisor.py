"""Threads that live through every exception: what they do is tried again, after pauses that grow."""

from __future__ import annotations

import random
import time
from threading import Event, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 10.0
# A run that lasts longer than this was a good one: the pauses begin again with the first.
STEADY_SECONDS = 10.0


class Supervisor:
    """A thread that runs `action` again and again until it is stopped; no exception ends it.

    After an exception it pauses, as it does after the second of several runs that end quickly. `failed` is called with
    the exception and the seconds until the next attempt.
    """

    def __init__(self, name: str, action: Callable[[], None], failed: Callable[[Exception, float], None]) -> None:
        self.stopping = Event()
        self._name = name
        self._action = action
        self._failed = failed
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self.stopping.clear()
        thread = Thread(target=self._run, name=self._name, daemon=True)
        thread.start()
        self._thread = thread

    def join(self) -> None:
        """Wait for the end of the thread, once `stopping` is set."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        quick_ends = 0
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                self._action()
                error = None
            except Exception as raised:  # noqa: BLE001 - whatever it is, it is reported and tried again
                error = raised
            quick_ends = quick_ends + 1 if time.monotonic() - began < STEADY_SECONDS else 1
            pause = 0.0 if error is None and quick_ends == 1 else pause_after(quick_ends)
            if error is not None and not self.stopping.is_set():
                self._failed(error, pause)
            self.stopping.wait(pause)


def pause_after(attempts: int) -> float:
    """Seconds to wait after so many attempts in a row: they double up to MAX_PAUSE_SECONDS, with jitter."""
    longest = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * (1 << min(attempts, 16)))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
