"""Count the finished items of a batch, and estimate the remaining time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kinema.batch.batch_items import Outcome


class BatchProgress:
    """Counts of a run: `total` items, of which `completed` (`earlier` of them by earlier runs) and `failed`."""

    def __init__(self, total: int, *, failed: int = 0) -> None:
        self.total = total
        self.completed = self.earlier = 0
        self.failed = failed
        self._rate_count = 0
        self._began = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.completed += outcome.status == "completed"
        self.failed += outcome.status == "failed"
        self.earlier += outcome.is_earlier
        self._rate_count += outcome.status == "completed" and not outcome.is_earlier

    @property
    def finished(self) -> int:
        """Number of items that are completed or failed."""
        return self.completed + self.failed

    @property
    def per_minute(self) -> float | None:
        """Videos per minute of this run, None before the first."""
        elapsed = time.monotonic() - self._began
        return 60 * self._rate_count / elapsed if self._rate_count and elapsed else None

    @property
    def eta(self) -> float | None:
        """Expected seconds until the end, None before the first video."""
        rate = self.per_minute
        return None if rate is None else 60 * (self.total - self.finished) / rate
