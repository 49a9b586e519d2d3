"""Positions of queued jobs.

The n-th job of a priority by turn starts when the n-th by rank would start if all jobs had one owner. So its position
is that of the n-th by rank among all queued jobs.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import sqlalchemy as sa

from kinema.jobs.job_schema import COUNT_QUEUED, IS_QUEUED, JOBS, QUEUE_ORDER, RANK, TURN_ORDER

if TYPE_CHECKING:
    from collections.abc import Sequence

# To find so many positions one by one is faster than to number all queued jobs.
_FEW = 4


def positions_of(connection: sa.Connection, rows: Sequence[sa.RowMapping]) -> dict[int, int]:
    """Return the position of each queued job among rows of JOBS, by `seq`."""
    queued = [row for row in rows if row["status"] == "queued"]
    if len(queued) <= _FEW:
        return {row["seq"]: position_of(connection, row) for row in queued}
    numbered = _all_positions().subquery()
    found = sa.select(numbered).where(numbered.c.seq.in_([row["seq"] for row in queued]))
    return {row.seq: row.position for row in connection.execute(found)}


def position_of(connection: sa.Connection, row: sa.RowMapping) -> int:
    """Return the position of a queued job, given its row of JOBS."""
    priority, turn = row["priority"], row["turn"]
    same = COUNT_QUEUED.where(JOBS.c.priority == priority)
    is_not_later = sa.tuple_(JOBS.c.created_at, JOBS.c.seq) <= sa.tuple_(
        *map(sa.literal, (row["created_at"], row["seq"]))
    )
    # Two counts, of which the first reads an index only.
    by_turn = connection.execute(same.where(JOBS.c.turn < turn)).scalar_one()
    by_turn += connection.execute(same.where(JOBS.c.turn == turn, is_not_later)).scalar_one()
    others = sa.select(JOBS.c.seq).where(IS_QUEUED).limit(1)
    if not any(
        connection.execute(others.where(is_other)).first()
        for is_other in (JOBS.c.priority < priority, JOBS.c.priority > priority)
    ):
        return by_turn
    of_priority = sa.select(RANK.label("rank"), JOBS.c.seq).where(IS_QUEUED, JOBS.c.priority == priority)
    slot = connection.execute(of_priority.order_by(*QUEUE_ORDER).limit(1).offset(by_turn - 1)).first()
    if slot is None:  # claimed or cancelled meanwhile
        return by_turn
    is_ahead = sa.tuple_(RANK, JOBS.c.seq) <= sa.tuple_(sa.literal(slot.rank), sa.literal(slot.seq))
    return connection.execute(COUNT_QUEUED.where(is_ahead)).scalar_one()


def _all_positions() -> sa.Select[tuple[int, int]]:
    """Return the selection of `seq` and position of each queued job. It reads all of them."""
    by_priority = functools.partial(sa.func.row_number().over, partition_by=JOBS.c.priority)
    queued = (
        sa.select(
            JOBS.c.seq,
            JOBS.c.priority,
            by_priority(order_by=TURN_ORDER).label("by_turn"),
            by_priority(order_by=QUEUE_ORDER).label("by_rank"),
            sa.func.row_number().over(order_by=QUEUE_ORDER).label("position"),
        )
        .where(IS_QUEUED)
        .cte()
    )
    slots = queued.alias()
    return sa.select(queued.c.seq, slots.c.position).join(
        slots, (slots.c.priority == queued.c.priority) & (slots.c.by_rank == queued.c.by_turn)
    )
