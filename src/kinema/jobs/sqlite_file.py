"""A SQLite database's file: private, still the one that was opened, and with a reserve for a disk that is full."""

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

# Reading every page of a large database would take long: what is not read now is read by none, and the start does.
CHECK_SECONDS = 1.0
RESERVE_BYTES = 1 << 20
_BESIDE = ("", "-wal", "-shm")


class SqliteFile:
    """The file at a SQLite database's address; it is created where there is none, for its owner alone.

    Raises:
        ValueError: where the address names no file.
        OSError: where it can't be created.
    """

    def __init__(self, url: sa.URL) -> None:
        if url.database is None or url.database == ":memory:" or url.database.startswith("file:") or url.query:
            raise ValueError("sqlite:/// needs the path of a file, and nothing after it")
        self.path = Path(url.database).absolute()
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        for path in (*self._files(), self._reserve, self._runner):
            make_private(path)
        # Never creates a file: a database that is removed while the server runs does not come back empty.
        self._uri = f"file:{quote(str(self.path))}"
        self.url = url.set(database=self._uri, query={"uri": "true", "mode": "rw"})
        self._anchor: sqlite3.Connection | None = None
        self._identity: tuple[tuple[int, int], ...] = ()

    def hold(self) -> None:
        """Keep the files as they are now: while one connection is open, SQLite neither removes nor replaces them."""
        self._anchor = self._connect()
        self._anchor.execute("SELECT count(*) FROM sqlite_master").fetchone()
        self._identity = self._identities()

    def close(self) -> None:
        """Let SQLite tidy up, as soon as its last connection is closed."""
        if self._anchor is not None:
            self._anchor.close()

    def is_in_place(self) -> bool:
        """Whether the files are those that were opened; what is written to any others is lost with this process."""
        if self._anchor is None:
            return True
        try:
            return self._identities() == self._identity
        except OSError:
            return False

    @contextlib.contextmanager
    def fresh(self) -> Iterator[sqlite3.Connection]:
        """A new connection, which sees what the next start of the server would."""
        with contextlib.closing(self._connect()) as connection:
            yield connection

    def fault(self) -> str | None:
        """What SQLite finds wrong with its pages, as far as it can read them within CHECK_SECONDS."""
        deadline = time.monotonic() + CHECK_SECONDS
        with self.fresh() as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            try:
                found = " ".join(str(connection.execute("PRAGMA quick_check(1)").fetchone()[0]).split())
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                    raise
                return None
        return None if found == "ok" else found

    def release_reserve(self) -> None:
        """Make room for a deletion: of what is kept for that, and of what stands in the log and in the file as well."""
        self._reserve.unlink(missing_ok=True)
        with contextlib.suppress(sqlite3.Error), self.fresh() as connection:
            connection.execute("PRAGMA wal_checkpoint(RESTART)")

    def refill_reserve(self) -> None:
        """Keep room for deletions again, as much as there is: on a full disk SQLite can't write down even those."""
        with contextlib.suppress(OSError), open(self._reserve, "ab", opener=_private, buffering=0) as file:
            while file.tell() < RESERVE_BYTES:
                file.write(bytes(1 << 16))

    @contextlib.contextmanager
    def sole_runner(self) -> Iterator[bool]:
        """Whether this process may run the jobs of this database, until the context is left."""
        with open(self._runner, "ab", opener=_private) as lock:
            yield try_lock(lock, fcntl.LOCK_EX)

    def has_runner(self) -> bool:
        """Whether any process is in `sole_runner`."""
        return is_locked(self._runner)

    @property
    def _runner(self) -> Path:
        return Path(f"{self.path}.runner")

    @property
    def _reserve(self) -> Path:
        return Path(f"{self.path}.reserve")

    def _files(self) -> list[Path]:
        return [Path(f"{self.path}{ending}") for ending in _BESIDE]

    def _identities(self) -> tuple[tuple[int, int], ...]:
        facts = [path.stat() for path in self._files()]
        return tuple((each.st_dev, each.st_ino) for each in facts)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self._uri}?mode=rw", uri=True, timeout=5, check_same_thread=False)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
