"""What is accepted is durable, and what is deleted is gone."""

import dataclasses
import os
from unittest import mock

import pytest
from queue_helpers import IMAGE, finished, request, until

from kinema.errors import InsufficientDisk, QueueUnavailable
from kinema.jobs import Queue


@pytest.fixture
def lost(settings):
    """A queue whose jobs no one runs, and its database's files."""
    queue = Queue(settings)
    queue.submit(request(), image=IMAGE)
    yield queue, [settings.data_dir / f"jobs.sqlite3{ending}" for ending in ("", "-wal", "-shm")]
    queue.close()


@pytest.mark.parametrize("which", [slice(None), slice(1, 2), slice(0, 1)], ids=["all", "the log", "the file"])
def test_nothing_is_accepted_into_a_database_whose_files_were_removed(lost, which):
    queue, files = lost
    queue.check_database()
    for path in files[which]:
        path.rename(path.with_name(f"{path.name}.away"))
    for act in (queue.check_database, lambda: queue.submit(request(), image=IMAGE), queue.list):
        with pytest.raises(QueueUnavailable, match="removed or replaced while the server runs"):
            act()
    assert not files[which][0].exists()
    for path in files[which]:
        path.with_name(f"{path.name}.away").rename(path)
    queue.check_database()
    assert queue.submit(request(), image=IMAGE).queue_position == 2


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
        queue.submit(request(), image=IMAGE)


@pytest.mark.parametrize("damage", ["overwritten", "removed"])
def test_nothing_is_accepted_where_the_database_of_workflows_is_damaged(lost, settings, damage):
    queue, _ = lost
    workflows = settings.data_dir / "jobs.sqlite3.workflows"
    if damage == "removed":
        workflows.unlink()
    else:
        workflows.write_bytes(bytes(range(256)) * 64)
    for act in (queue.check_database, lambda: queue.submit(request(), image=IMAGE)):
        with pytest.raises(QueueUnavailable, match="the queue's database is damaged"):
            act()


def test_a_job_that_is_written_to_an_overwritten_file_is_not_accepted_though_no_one_checked_before(lost):
    queue, files = lost
    for path in files[:2]:
        os.truncate(path, 0)
    with pytest.raises(QueueUnavailable):
        queue.submit(request(seed=9), image=IMAGE)


def test_a_delete_in_the_moment_of_completion_leaves_no_file(queue, settings, monkeypatch):
    job = finished(queue, queue.submit(request(), image=IMAGE))
    before = dataclasses.replace(job, status="in_progress")  # as who deletes may have read it just before
    monkeypatch.setattr(queue._store, "get", lambda _: before)
    queue.delete(job.id)
    assert not list((settings.data_dir / "jobs").iterdir())


def test_an_image_whose_job_could_not_be_stored_goes_with_the_next_sweep(queue, settings, monkeypatch):
    until(lambda: queue.ready)
    with monkeypatch.context() as patched:
        patched.setattr(queue._store, "add", mock.Mock(side_effect=QueueUnavailable("away")))
        with pytest.raises(QueueUnavailable):
            queue.submit(request(), image=b"another image")
    queue._runner._sweep()
    assert not list((settings.data_dir / "images").iterdir())


def refusing_images(monkeypatch, queue, error):
    """Have the store refuse to write down which image a job has; what undoes that, and whether it was tried."""
    record, tried = queue._store.record, []

    def refuse(job_id, **values):
        if "image" in values and not (tried and tried[-1] == "undone"):
            tried.append("refused")
            raise error
        return record(job_id, **values)

    monkeypatch.setattr(queue._store, "record", refuse)
    return tried


def test_a_job_that_waits_for_its_database_hinders_no_deletion(queue, monkeypatch):
    tried = refusing_images(monkeypatch, queue, QueueUnavailable("away"))
    job = queue.submit(request(prompt="a fox"))
    until(lambda: tried)
    other = queue.submit(request(), image=IMAGE)
    queue.delete(other.id)
    tried.append("undone")
    assert finished(queue, job).status == "completed"


def test_an_image_that_can_not_be_recorded_on_a_full_disk_fails_its_job(queue, monkeypatch):
    refusing_images(monkeypatch, queue, InsufficientDisk("the disk of the queue's database is full"))
    job = finished(queue, queue.submit(request(prompt="a fox")))
    assert (job.status, job.error.code) == ("failed", "insufficient_disk")
