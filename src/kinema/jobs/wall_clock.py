"""Detect jumps of the wall clock, which decides when jobs expire."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

JUMP_SECONDS = 3600.0
WAIT_SECONDS = 86_400.0


class WallClock:
    """Compare the wall clock with the monotonic clock. After a jump, do not trust the wall clock for a day.

    A clock that is wrong for less than a day therefore deletes no job. A suspended machine looks like a jump; its jobs
    expire a day later.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()
        self._trusted_from = 0.0

    def is_trusted(self) -> bool:
        """Return whether the clock has not jumped for a day. Call this more often than every JUMP_SECONDS."""
        now = time.monotonic()
        jump = time.time() - now - self._offset
        self._offset += jump
        if abs(jump) > JUMP_SECONDS:
            log.warning(
                "the system clock jumped by %.1f hours; in case it is wrong, no job expires for a day", jump / 3600
            )
            self._trusted_from = now + WAIT_SECONDS
        return now >= self._trusted_from
