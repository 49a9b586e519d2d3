"""What is accepted is durable, and what is deleted is gone."""

import dataclasses
import os
from types import SimpleNamespace
from unittest import mock

import pytest
from queue_helpers import STILL, finished, request, until

from kinema.errors import QueueUnavailable
from kinema.jobs import Queue


@pytest.fixture
def lost(settings):
    """A queue whose jobs no one runs, and its database's files."""
    queue = Queue(settings)
    queue.submit(request(), still=STILL)
    yield queue, [settings.data_dir / f"jobs.sqlite3{ending}" for ending in ("", "-wal", "-shm")]
    queue.close()


@pytest.mark.parametrize("which", [slice(None), slice(1, 2), slice(0, 1)], ids=["all", "the log", "the file"])
def test_nothing_is_accepted_into_a_database_whose_files_were_removed(lost, which):
    queue, files = lost
    queue.check_database()
    for path in files[which]:
        path.rename(path.with_name(f"{path.name}.away"))
    for act in (queue.check_database, lambda: queue.submit(request(), still=STILL), queue.list):
        with pytest.raises(QueueUnavailable, match="removed or replaced while the server runs"):
            act()
    assert not files[which][0].exists()
    for path in files[which]:
        path.with_name(f"{path.name}.away").rename(path)
    queue.check_database()
    assert queue.submit(request(), still=STILL).queue_position == 2


@pytest.mark.parametrize("damage", ["emptied", "overwritten", "overwritten within"])
def test_nothing_is_accepted_into_a_damaged_database(lost, damage):
    queue, files = lost
    size = files[0].stat().st_size
    with files[0].open("r+b") as file:
        if damage == "emptied":
            file.truncate(0)
        else:
            file.seek(0 if damage == "overwritten" else 4096)
            file.write(bytes(range(256)) * (size // 256))
    os.truncate(files[1], 0)  # else the log still holds every page
    with pytest.raises(QueueUnavailable):
        queue.check_database()
    with pytest.raises(QueueUnavailable):
        queue.submit(request(), still=STILL)


def test_a_job_that_is_written_to_an_overwritten_file_is_not_accepted_though_no_one_checked_before(lost):
    queue, files = lost
    for path in files[:2]:
        os.truncate(path, 0)
    with pytest.raises(QueueUnavailable):
        queue.submit(request(seed=9), still=STILL)


def test_a_delete_in_the_moment_of_completion_leaves_no_file(queue, settings, monkeypatch):
    job = finished(queue, queue.submit(request(), still=STILL))
    before = dataclasses.replace(job, status="in_progress")  # as who deletes may have read it just before
    monkeypatch.setattr(queue._store, "get", lambda _: before)
    queue.delete(job.id)
    assert not list((settings.data_dir / "jobs").iterdir())


def test_an_image_whose_job_could_not_be_stored_goes_with_the_next_sweep(queue, settings, monkeypatch):
    until(lambda: queue.ready)
    with monkeypatch.context() as patched:
        patched.setattr(queue._store, "add", mock.Mock(side_effect=QueueUnavailable("away")))
        with pytest.raises(QueueUnavailable):
            queue.submit(request(), still=b"another image")
    queue._runner._sweep()
    assert not list((settings.data_dir / "stills").iterdir())


def test_a_job_that_dbos_could_not_begin_again_at_the_start_is_begun_later(settings, monkeypatch):
    """As on a disk that was full at the start, so DBOS's answer is made up."""
    from dbos import DBOS

    monkeypatch.setattr("kinema.jobs.running.IDLE_SECONDS", 0)
    monkeypatch.setattr(DBOS, "get_workflow_status", lambda _: SimpleNamespace(status="PENDING", app_version="1"))
    resumed = mock.Mock()
    monkeypatch.setattr(DBOS, "resume_workflow", resumed)
    queue = Queue(settings, "queue_work:Work")  # not opened: nothing else runs the job
    job = queue.submit(request(), still=STILL)
    runner = queue._runner
    runner._store.claim([None])
    runner._reconcile()
    resumed.assert_not_called()  # it may be about to begin
    runner._reconcile()
    resumed.assert_called_once_with(job.id)
    runner._store.close()
