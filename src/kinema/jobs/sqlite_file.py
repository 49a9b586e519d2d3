"""The file of a SQLite database: private, checked for replacement and damage, with reserved space for a full disk."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from kinema.jobs.job_files import is_locked, make_private, try_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa

# Time limit of a check. Of a large database, later pages are not checked.
CHECK_SECONDS = 1.0
RESERVE_BYTES = 1 << 20
_SUFFIXES = ("", "-wal", "-shm")


class SqliteFile:
    """The file of a SQLite URL. A missing file is created, readable by its owner only.

    Raises:
        ValueError: the URL names no file.
        OSError: the file can't be created.
    """

    def __init__(self, url: sa.URL) -> None:
        if url.database is None or url.database == ":memory:" or url.database.startswith("file:") or url.query:
            raise ValueError("expected sqlite:/// and the path of a file, without parameters")
        self.path = Path(url.database).absolute()
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        for path in (*self._files(), self._reserve, self._scheduler_lock):
            make_private(path)
        # mode=rw never creates a file: a database that is removed while the server runs is not recreated empty.
        self._uri = f"file:{quote(str(self.path))}"
        self.url = url.set(database=self._uri, query={"uri": "true", "mode": "rw"})
        self._open_connection: sqlite3.Connection | None = None
        self._inodes: tuple[tuple[int, int], ...] = ()

    def keep_open(self) -> None:
        """Open a connection until `close`, so that SQLite neither deletes nor recreates the WAL files meanwhile."""
        self._open_connection = self._connect()
        self._open_connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        self._inodes = self._read_inodes()

    def close(self) -> None:
        """Close the connection of `keep_open`."""
        if self._open_connection is not None:
            self._open_connection.close()

    def is_in_place(self) -> bool:
        """Return whether the files are still those of `keep_open`. Writes to a removed file would be lost."""
        if self._open_connection is None:
            return True
        try:
            return self._read_inodes() == self._inodes
        except OSError:
            return False

    @contextlib.contextmanager
    def new_connection(self) -> Iterator[sqlite3.Connection]:
        """Open a new connection, which reads what the next start of the server would read."""
        with contextlib.closing(self._connect()) as connection:
            yield connection

    def find_damage(self) -> str | None:
        """Return what SQLite's quick_check reports, or None if it finds nothing within CHECK_SECONDS."""
        deadline = time.monotonic() + CHECK_SECONDS
        with self.new_connection() as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            try:
                result = " ".join(str(connection.execute("PRAGMA quick_check(1)").fetchone()[0]).split())
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                    raise
                return None
        return None if result == "ok" else result

    def release_reserve(self) -> None:
        """Free disk space for a deletion: delete the reserve and reuse the space of the write-ahead log."""
        self._reserve.unlink(missing_ok=True)
        with contextlib.suppress(sqlite3.Error), self.new_connection() as connection:
            connection.execute("PRAGMA wal_checkpoint(RESTART)")

    def refill_reserve(self) -> None:
        """Reserve disk space for deletions, as far as available: SQLite can't delete rows on a full disk."""
        with contextlib.suppress(OSError), open(self._reserve, "ab", opener=_open_private, buffering=0) as file:
            while file.tell() < RESERVE_BYTES:
                file.write(bytes(1 << 16))

    @contextlib.contextmanager
    def sole_scheduler(self) -> Iterator[bool]:
        """Try to take the scheduler lock of this database until the context ends; yield whether it succeeded."""
        with open(self._scheduler_lock, "ab", opener=_open_private) as lock:
            yield try_lock(lock, fcntl.LOCK_EX)

    def has_scheduler(self) -> bool:
        """Return whether any process holds the scheduler lock."""
        return is_locked(self._scheduler_lock)

    @property
    def _scheduler_lock(self) -> Path:
        return Path(f"{self.path}.scheduler")

    @property
    def _reserve(self) -> Path:
        return Path(f"{self.path}.reserve")

    def _files(self) -> list[Path]:
        return [Path(f"{self.path}{suffix}") for suffix in _SUFFIXES]

    def _read_inodes(self) -> tuple[tuple[int, int], ...]:
        stats = [path.stat() for path in self._files()]
        return tuple((each.st_dev, each.st_ino) for each in stats)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self._uri}?mode=rw", uri=True, timeout=5, check_same_thread=False)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
