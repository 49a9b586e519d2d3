"""Accepted jobs are durable, and deleted files are gone."""

import dataclasses
import os
from unittest import mock

import pytest
from queue_helpers import IMAGE, request, wait_finished, wait_until

from kinema.errors import InsufficientDisk, QueueUnavailable
from kinema.jobs import NewJob, Queue


@pytest.fixture
def observer_and_files(settings):
    """A queue that runs no jobs, and the files of its database."""
    queue = Queue(settings)
    queue.submit(NewJob(request(), image=IMAGE))
    yield queue, [settings.data_dir / f"jobs.sqlite3{ending}" for ending in ("", "-wal", "-shm")]
    queue.close()


@pytest.mark.parametrize("which", [slice(None), slice(1, 2), slice(0, 1)], ids=["all", "the log", "the file"])
def test_submit_fails_if_database_files_were_removed(observer_and_files, which):
    queue, files = observer_and_files
    queue.check_database()
    for path in files[which]:
        path.rename(path.with_name(f"{path.name}.away"))
    for act in (queue.check_database, lambda: queue.submit(NewJob(request(), image=IMAGE)), queue.list):
        with pytest.raises(QueueUnavailable, match="removed or replaced while the server was running"):
            act()
    assert not files[which][0].exists()
    for path in files[which]:
        path.with_name(f"{path.name}.away").rename(path)
    queue.check_database()
    assert queue.submit(NewJob(request(), image=IMAGE)).queue_position == 2


@pytest.mark.parametrize("damage", ["emptied", "overwritten", "overwritten within"])
def test_submit_fails_if_database_is_damaged(observer_and_files, damage):
    queue, files = observer_and_files
    size = files[0].stat().st_size
    with files[0].open("r+b") as file:
        if damage == "emptied":
            file.truncate(0)
        else:
            file.seek(0 if damage == "overwritten" else 4096)
            file.write(bytes(range(256)) * (size // 256))
    os.truncate(files[1], 0)  # otherwise the write-ahead log still has every page
    with pytest.raises(QueueUnavailable):
        queue.check_database()
    with pytest.raises(QueueUnavailable):
        queue.submit(NewJob(request(), image=IMAGE))


@pytest.mark.parametrize("damage", ["overwritten", "removed"])
def test_submit_fails_if_workflow_database_is_damaged(observer_and_files, settings, damage):
    queue, _ = observer_and_files
    workflows = settings.data_dir / "jobs.sqlite3.workflows"
    if damage == "removed":
        workflows.unlink()
    else:
        workflows.write_bytes(bytes(range(256)) * 64)
    for act in (queue.check_database, lambda: queue.submit(NewJob(request(), image=IMAGE))):
        with pytest.raises(QueueUnavailable, match="the queue's database is damaged"):
            act()


def test_submit_to_overwritten_database_fails_without_prior_check(observer_and_files):
    queue, files = observer_and_files
    for path in files[:2]:
        os.truncate(path, 0)
    with pytest.raises(QueueUnavailable):
        queue.submit(NewJob(request(seed=9), image=IMAGE))


def test_delete_during_completion_leaves_no_files(queue, settings, monkeypatch):
    job = wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
    before = dataclasses.replace(job, status="in_progress")  # as read just before the completion
    monkeypatch.setattr(queue._table, "get", lambda _: before)
    queue.delete(job.id)
    assert not list((settings.data_dir / "jobs").iterdir())


def test_image_of_unstored_job_is_deleted_by_next_sweep(queue, settings, monkeypatch):
    wait_until(lambda: queue.ready)
    with monkeypatch.context() as patched:
        patched.setattr(queue._submitter._inserts, "add", mock.Mock(side_effect=QueueUnavailable("away")))
        with pytest.raises(QueueUnavailable):
            queue.submit(NewJob(request(), image=b"another image"))
    queue._scheduler._sweep()
    assert not list((settings.data_dir / "images").iterdir())


def fail_to_store_image(monkeypatch, queue, error):
    """Have the table raise `error` for a generated image. Return the list of calls; append "undone" to undo it."""
    record, calls = queue._table.record, []

    def record_or_fail(job_id, **values):
        if "image" in values and not (calls and calls[-1] == "undone"):
            calls.append("failed")
            raise error
        return record(job_id, **values)

    monkeypatch.setattr(queue._table, "record", record_or_fail)
    return calls


def test_delete_works_while_a_job_waits_for_the_database(queue, monkeypatch):
    calls = fail_to_store_image(monkeypatch, queue, QueueUnavailable("away"))
    job = queue.submit(NewJob(request(prompt="a fox")))
    wait_until(lambda: calls)
    other = queue.submit(NewJob(request(), image=IMAGE))
    queue.delete(other.id)
    calls.append("undone")
    assert wait_finished(queue, job).status == "completed"


def test_full_disk_while_storing_generated_image_fails_job(queue, monkeypatch):
    fail_to_store_image(monkeypatch, queue, InsufficientDisk("the disk of the queue's database is full"))
    job = wait_finished(queue, queue.submit(NewJob(request(prompt="a fox"))))
    assert (job.status, job.error.code) == ("failed", "insufficient_disk")
