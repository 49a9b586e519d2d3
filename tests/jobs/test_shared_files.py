"""Servers with data folders of their own share images and videos in a store."""

import contextlib
import os
import shutil
import time

import pytest
from queue_helpers import BLOCKED, IMAGE, Server, release_jobs, request, started_tasks, wait_finished, wait_until
from queue_work import expected_image, expected_video

from kinema.errors import FileNotFound, InvalidRequest, JobNotFound, QueueUnavailable
from kinema.jobs import NewJob, Queue
from kinema.jobs.deletion import remove_job
from kinema.jobs.shared_files import ORPHAN_SECONDS
from kinema.settings import Settings


def servers(tmp_path, url, store, **changes):
    """Return the settings of two servers with one database and one store."""
    return [
        Settings(data_dir=tmp_path / name, database_url=url, store=store, min_free_gb=0, **changes)
        for name in ("a", "b")
    ]


@pytest.fixture
def folders(tmp_path, task_log, postgresql_url, s3_store):
    return servers(tmp_path, postgresql_url, s3_store)


@pytest.fixture(params=["file", "s3"])
def alike(request, tmp_path, task_log):
    """The settings of two servers, with a shared folder and with a bucket."""
    store = request.getfixturevalue("s3_store") if request.param == "s3" else f"file://{tmp_path}/shared"
    return servers(tmp_path, f"sqlite:///{tmp_path}/shared.sqlite3", store)


def stored(queue):
    """Return the names of all files of the queue's store."""
    return sorted(file.name for file in queue._files._store.list(""))


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_job_submitted_to_one_server_runs_on_another_and_is_served_by_both(folders):
    here, there = folders
    with Queue(there, "queue_work:Work") as running, Queue(here) as submitting:
        wait_until(lambda: running.ready)
        job = wait_finished(submitting, submitting.submit(NewJob(request(), image=IMAGE)))
        prompted = wait_finished(submitting, submitting.submit(NewJob(request(prompt="a fox"))))
        for queue in (submitting, running):
            assert queue.result(job.id).read_bytes() == expected_video(job.request, IMAGE)
            assert queue.image(job.id).read_bytes() == queue.find_image(job.image).read_bytes() == IMAGE
            assert queue.image(prompted.id).read_bytes() == expected_image(prompted.request)
        names = [f"jobs/{each.id}/{name}" for each in (job, prompted) for name in ("input", "video.mp4")]
        wait_until(lambda: stored(running) == sorted(["database-id", *names]))  # without a preview


def test_other_server_shows_preview_of_running_job(folders, task_log):
    here, there = folders
    with Queue(there, "queue_work:Work") as running, Queue(here) as watching:
        wait_until(lambda: running.ready)
        job = watching.submit(NewJob(request(**BLOCKED), image=IMAGE))
        wait_until(lambda: watching.preview(job.id) == b"a picture")
        release_jobs(task_log)
        wait_finished(watching, job)
        assert watching.preview(job.id) is None


def test_deleted_and_expired_jobs_leave_no_files(alike, clock):
    here, there = alike
    with Queue(there, "queue_work:Work") as running, Queue(here) as other:
        wait_until(lambda: running.ready)
        deleted, expired = (wait_finished(other, other.submit(NewJob(request(seed=i), image=IMAGE))) for i in (1, 2))
        copies = [other.result(job.id) for job in (deleted, expired)]
        running.delete(deleted.id)
        clock.now += 31 * 86_400
        assert running._table.expired() == [expired.id]
        assert remove_job(running._table, running._files, expired.id, only_expired=True)
        for job in (deleted, expired):
            for queue in (other, running):
                with pytest.raises(JobNotFound):
                    queue.result(job.id)
        assert stored(running) == ["database-id"]
        running._scheduler._sweep_files()
        assert (running.unknown_files, copies[1].exists()) == (0, True)  # a copy that nobody gets
        other._cache_keeper.trim(unused_seconds=-60)
        assert files_below(here.data_dir / "cache") == []


def test_cache_keeps_within_its_size_and_copies_again(tmp_path, task_log):
    url, store = f"sqlite:///{tmp_path}/shared.sqlite3", f"file://{tmp_path}/shared"
    here, there = servers(tmp_path, url, store, cache_gb=70_000 / 1e9)
    with Queue(there, "queue_work:Work") as running, Queue(here) as other:
        jobs = [wait_finished(other, other.submit(NewJob(request(seed=seed), image=IMAGE))) for seed in range(3)]
        paths = [other.result(job.id) for job in jobs]
        assert {path.stat().st_size for path in paths} == {64_000}
        for age, path in enumerate(paths):
            os.utime(path.parent, (time.time() - 900 - 100 * age,) * 2)
        other._cache_keeper.trim()
        assert [path.exists() for path in paths] == [True, False, False]
        assert other.result(jobs[2].id).read_bytes() == expected_video(jobs[2].request, IMAGE)
        assert running.unknown_files == 0


def test_rejected_submissions_leave_no_images(alike):
    settings = alike[0].model_copy(update={"queue_size": 1})
    with Queue(settings) as queue:
        job = queue.submit(NewJob(request(), image=IMAGE, idempotency_key="k"))
        for _ in range(2):
            with pytest.raises(Exception, match="the queue is full"):
                queue.submit(NewJob(request(), image=IMAGE))
        assert stored(queue) == sorted(["database-id", f"jobs/{job.id}/input"])


def test_sweep_deletes_images_of_jobs_that_were_never_stored_and_keeps_unknown_videos(alike, monkeypatch):
    with Queue(alike[0], "queue_work:Work") as queue:
        wait_until(lambda: queue.ready)
        store = queue._files._store
        lost, unknown = (f"video_{digit * 32}" for digit in "ab")
        for name in (f"{lost}/input", f"{lost}/preview.jpg", f"{unknown}/input", f"{unknown}/video.mp4"):
            store.put(f"jobs/{name}", b"x")
        queue._scheduler._sweep_files()
        assert len(stored(queue)) == 5
        now = time.time()
        monkeypatch.setattr("kinema.jobs.shared_files.time.time", lambda: now + ORPHAN_SECONDS + 60)
        queue._scheduler._sweep_files()
        assert stored(queue) == sorted(["database-id", f"jobs/{unknown}/input", f"jobs/{unknown}/video.mp4"])
        assert queue.unknown_files == 2


def test_store_that_is_away_rejects_jobs_and_delays_running_ones(folders, s3, task_log):
    here, there = folders
    with Queue(there, "queue_work:Work") as running, Queue(here) as other:
        wait_until(lambda: running.ready)
        done = wait_finished(other, other.submit(NewJob(request(seed=1), image=IMAGE)))
        job = other.submit(NewJob(request(**BLOCKED), image=IMAGE))
        wait_until(lambda: running.get(job.id).stage == "denoise")
        with s3.fault("away"):
            release_jobs(task_log)
            for arguments in ({"image": IMAGE}, {"prompt": "a fox"}):
                image = arguments.pop("image", None)
                with pytest.raises(QueueUnavailable, match=r"the store .* can't be used"):
                    other.submit(NewJob(request(**arguments), image=image))
            assert [found.id for found in other.list().jobs] == [job.id, done.id]
            with pytest.raises(QueueUnavailable):
                other.check_store()
            assert "the store" in other.problems[-1]
            with pytest.raises(QueueUnavailable):
                other.result(done.id)
            assert running.result(done.id).exists()  # its copy
            other.delete(done.id)  # its files are deleted later
            wait_until(lambda: running.problems)
            assert running.get(job.id).status == "in_progress"
        job = wait_finished(other, job)
        other.check_store()
        assert (job.status, job.attempts, other.problems) == ("completed", 0, ())
        assert other.result(job.id).read_bytes() == expected_video(job.request, IMAGE)
        running._scheduler._do_housekeeping()
        assert stored(running) == sorted(["database-id", f"jobs/{job.id}/input", f"jobs/{job.id}/video.mp4"])


def test_job_is_cancelled_while_its_upload_is_retried(folders, s3, task_log):
    with Queue(folders[0], "queue_work:Work") as queue:
        job = queue.submit(NewJob(request(**BLOCKED), image=IMAGE))
        wait_until(lambda: queue.get(job.id).stage == "denoise")
        with s3.fault("away"):
            release_jobs(task_log)
            wait_until(lambda: queue.problems)
            assert queue.cancel(job.id).status == "failed"
            wait_until(lambda: queue.running() == 0)


def test_killed_upload_serves_nothing_and_job_completes_after_restart(tmp_path, s3, s3_store, task_log):
    here, there = servers(tmp_path, f"sqlite:///{tmp_path}/shared.sqlite3", s3_store)
    bucket = here.store.removeprefix("s3://").split("/")[0]
    with Queue(here) as other, contextlib.ExitStack() as stack:
        server = Server(there)
        stack.callback(server.kill)
        with s3.fault("stalled"):
            job = other.submit(NewJob(request(model="large"), image=IMAGE))
            wait_until(lambda: s3.has_open_uploads(bucket))
            server.kill()
            assert other.get(job.id).status == "in_progress"
            assert s3.keys(bucket) == [f"videos/{name}" for name in ("database-id", f"jobs/{job.id}/input")]
        parts = len(started_tasks(task_log))
        server.start()
        job = wait_finished(other, job)
        assert (job.status, parts, len(started_tasks(task_log))) == ("completed", 2, 2)  # only uploaded again
        assert other.result(job.id).read_bytes() == expected_video(job.request, IMAGE)


@pytest.mark.slow
def test_takeover_by_server_with_another_folder_completes_the_job(folders, s3, task_log):
    here, there = folders
    with Queue(here) as other, contextlib.ExitStack() as stack:
        server = Server(there)
        stack.callback(server.kill)
        with s3.fault("stalled"):
            job = other.submit(NewJob(request(model="large"), image=IMAGE))
            wait_until(lambda: s3.has_open_uploads(here.store.removeprefix("s3://").split("/")[0]))
            server.kill()
        with Queue(here, "queue_work:Work") as queue:
            job = wait_finished(queue, job)
            assert queue.result(job.id).read_bytes() == expected_video(job.request, IMAGE)
    assert (job.status, [part for _, part, *_ in started_tasks(task_log)]) == ("completed", ["latents", "video"] * 2)


def test_folder_without_its_mount_gets_no_jobs(tmp_path, task_log):
    here, _ = servers(tmp_path, f"sqlite:///{tmp_path}/shared.sqlite3", f"file://{tmp_path}/mount")
    with Queue(here) as queue:
        queue.submit(NewJob(request(), image=IMAGE))
        (tmp_path / "mount").rename(tmp_path / "elsewhere")
        for create in (lambda: None, (tmp_path / "mount").mkdir):
            create()
            with pytest.raises(QueueUnavailable, match="can't be used"):
                queue.submit(NewJob(request(seed=1), image=IMAGE))
            assert queue.problems
        (tmp_path / "mount").rmdir()
        (tmp_path / "elsewhere").rename(tmp_path / "mount")
        queue.check_store()
        assert (queue.problems, queue.waiting()) == ((), 1)


def test_store_and_database_belong_together(tmp_path, s3_store):
    def settings(database, store):
        url = f"sqlite:///{tmp_path}/{database}.sqlite3"
        return Settings(data_dir=tmp_path / database, database_url=url, store=store, min_free_gb=0)

    with Queue(settings("one", s3_store)) as queue:
        queue.submit(NewJob(request(), image=IMAGE))
    with pytest.raises(InvalidRequest, match="belongs to the database with the id"):
        Queue(settings("two", s3_store))
    with pytest.raises(InvalidRequest, match=f"are in the store {s3_store}, and KINEMA_STORE is not set"):
        Queue(settings("one", None))
    with pytest.raises(InvalidRequest, match="do not belong together"):
        Queue(settings("one", f"{s3_store}-other"))
    with Queue(settings("three", None)) as queue:
        queue.submit(NewJob(request(), image=IMAGE))
    with pytest.raises(InvalidRequest, match="1 videos and images of the database are in data folders"):
        Queue(settings("three", f"{s3_store}-other"))
    with Queue(settings("one", s3_store)) as queue:
        assert queue.waiting() == 1


def test_file_of_a_batch_is_read_and_deleted_by_another_server(alike):
    here, there = alike
    file_id = f"file-{'a' * 32}"
    with Queue(here) as writing, Queue(there) as reading:
        with writing.batch_files.create(file_id) as file:
            file.write(b"{}\n")
        with reading.batch_files.open(file_id) as file:
            assert file.read() == b"{}\n"
        assert stored(reading)[-1] == f"files/{file_id}.jsonl"
        writing.batch_files.sweep(known=())  # it is new: perhaps its row is written now
        reading.batch_files.delete(file_id)
        assert not any(name.startswith("files/") for name in stored(reading))
        with contextlib.suppress(OSError), writing.batch_files.create(file_id) as file:
            file.write(b"half")
            raise OSError
        assert not any(name.startswith("files/") for name in stored(reading))
        with pytest.raises(FileNotFound, match="was deleted"):
            reading.batch_files.open(file_id)


def test_server_with_a_copy_of_the_store_is_refused_while_another_uses_the_store(tmp_path, task_log):
    here, there = servers(tmp_path, f"sqlite:///{tmp_path}/shared.sqlite3", f"file://{tmp_path}/shared")
    moved = there.model_copy(update={"store": f"file://{tmp_path}/moved"})
    with Queue(here, "queue_work:Work") as queue:
        wait_until(lambda: queue.ready)
        shutil.copytree(tmp_path / "shared", tmp_path / "moved")
        with pytest.raises(InvalidRequest, match="stop all servers before you move it"):
            Queue(moved)
    Queue(moved).close()
