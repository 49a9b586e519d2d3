"""Whether the wall clock, by which jobs expire, can be trusted just now."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

JUMP_SECONDS = 3600.0
WAIT_SECONDS = 86_400.0


class WallClock:
    """Notices jumps of the wall clock against the monotonic one; after a jump it is not trusted for a day.

    A clock that is set wrong and put right again within the day deletes nothing. A machine that was suspended looks
    the same, and only expires its jobs a day later.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()
        self._trusted_from = 0.0

    def is_trusted(self) -> bool:
        """Whether it has not jumped for a day; to be asked more often than JUMP_SECONDS."""
        now = time.monotonic()
        jump = time.time() - now - self._offset
        self._offset += jump
        if abs(jump) > JUMP_SECONDS:
            log.warning("the clock jumped by %.1f hours; for a day no job expires, in case it is wrong", jump / 3600)
            self._trusted_from = now + WAIT_SECONDS
        return now >= self._trusted_from
