"""Limits of the jobs that one owner, an API key, may have in the queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from kinema.jobs.job_schema import IS_QUEUED, IS_RUNNING, JOBS

if TYPE_CHECKING:
    from collections.abc import Mapping


class LimitReached(Exception):
    """A job would exceed a limit of its owner."""

    def __init__(self, kind: Literal["jobs", "work"]) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class OwnerLimits:
    """The most that an owner may have in the queue; None is no limit.

    Attributes:
        jobs: Queued jobs.
        work: Work of queued and running jobs, as `Workload.total`.
    """

    jobs: int | None = None
    work: float | None = None

    def check(self, connection: sa.Connection, job: Mapping[str, Any]) -> None:
        """Check that a job, as the values of its row, may be added.

        Raises:
            LimitReached: it may not.
        """
        is_own = JOBS.c.owner == job["owner"]
        if self.jobs is not None:
            count = sa.select(sa.func.count()).select_from(JOBS).where(IS_QUEUED, is_own)
            if connection.execute(count).scalar_one() >= self.jobs:
                raise LimitReached("jobs")
        if self.work is not None:
            total = sa.select(sa.func.sum(JOBS.c.work)).where(sa.or_(IS_QUEUED, IS_RUNNING), is_own)
            if (connection.execute(total).scalar() or 0) + job["work"] > self.work:
                raise LimitReached("work")


NO_LIMITS = OwnerLimits()
