import time
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
    monkeypatch.setattr("kinema.jobs.store.time", clock)
    return clock


@pytest.fixture
def queue(settings):
    with Queue(settings, "queue_work:Work") as queue:
        yield queue
