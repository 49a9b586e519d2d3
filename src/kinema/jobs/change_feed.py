"""Notifications of changed jobs between the processes of one PostgreSQL database (LISTEN and NOTIFY)."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from kinema.jobs.database import driver_message
from kinema.jobs.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

CHANNEL = "kinema_jobs"
# How often `on_pause` is called, and how often the connection is used, so that a lost one is noticed.
PAUSE_SECONDS = 0.5
PROBE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Changes:
    """Jobs that changed.

    Attributes:
        job_ids: Their ids; None is all jobs.
        only_progress: Whether nothing but their progress changed.
    """

    job_ids: frozenset[str] | None
    only_progress: bool = False

    def __contains__(self, job_id: str) -> bool:
        return self.job_ids is None or job_id in self.job_ids


class ChangeFeed:
    """Calls back when other processes change jobs. Its own notifications are skipped.

    `is_live` says whether it is connected.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.is_live = False
        self._engine = engine
        self._own = secrets.token_hex(4)
        self._on_changes: Callable[[Changes], None] = lambda _: None
        self._on_pause: Callable[[], None] = lambda: None
        self._supervisor = Supervisor("kinema-changes", self._run, self._report)
        self._opened = threading.Event()

    def open(self, on_changes: Callable[[Changes], None], on_pause: Callable[[], None]) -> None:
        """Start to listen, and wait a moment for the first connection.

        Args:
            on_changes: Called with each change; with all jobs after each connection, since notifications may have been
                missed.
            on_pause: Called about every PAUSE_SECONDS.
        """
        self._on_changes, self._on_pause = on_changes, on_pause
        self._supervisor.start()
        self._opened.wait(PROBE_SECONDS)

    def close(self) -> None:
        """Stop to listen."""
        self._supervisor.stopping.set()
        with contextlib.suppress(sa.exc.SQLAlchemyError), self._engine.begin() as connection:
            self.notify(connection, "")  # wakes the thread
        self._supervisor.join()

    def notify(self, connection: sa.Connection, job_id: str, *, is_progress: bool = False) -> None:
        """Notify the other processes when the connection's transaction is committed."""
        payload = f"{self._own} {'progress' if is_progress else 'state'} {job_id}"
        connection.execute(sa.select(sa.func.pg_notify(CHANNEL, payload)))

    def _run(self) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            try:
                connection.exec_driver_sql(f"LISTEN {CHANNEL}")
                self.is_live = True
                self._on_changes(Changes(None))
                self._opened.set()
                self._listen(connection)
            finally:
                self.is_live = False
                connection.invalidate()  # it must not listen in the pool

    def _listen(self, connection: sa.Connection) -> None:
        driver: Any = connection.connection.driver_connection
        probed_at = time.monotonic()
        while not self._supervisor.stopping.is_set():
            payloads = [each.payload for each in driver.notifies(timeout=PAUSE_SECONDS, stop_after=1)]
            changes = [payload.split(" ") for payload in payloads]
            if others := [(kind, job_id) for own, kind, job_id in changes if own != self._own]:
                job_ids = frozenset(job_id for _, job_id in others)
                self._on_changes(Changes(job_ids, only_progress=all(kind == "progress" for kind, _ in others)))
            self._on_pause()
            if time.monotonic() - probed_at > PROBE_SECONDS:
                connection.execute(sa.select(1))
                probed_at = time.monotonic()

    def _report(self, error: Exception, pause: float) -> None:
        reason = driver_message(error)
        log.warning(
            "no notifications from other processes: %s; next attempt in %.1f s", reason, pause, extra={"repeats": True}
        )
