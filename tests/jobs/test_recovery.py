"""Workers and the scheduler recover by themselves once a missing resource is available again."""

import concurrent.futures
import contextlib
import errno
import os
import sqlite3
import sys
import threading

import pytest
from queue_helpers import BLOCKED, IMAGE, Server, release_jobs, request, started_tasks, wait_finished, wait_until

from kinema.jobs import NewJob, Queue
from kinema.jobs.supervisor import MAX_PAUSE_SECONDS, Supervisor, pause_after
from kinema.jobs.worker_pool import WorkerPool


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("kinema.jobs.supervisor.MAX_PAUSE_SECONDS", 0.2)


@pytest.fixture
def pool():
    pool = WorkerPool("queue_work:Work", ("cpu",), 60, lambda: None)
    pool.start()
    yield pool
    pool.close()


def pid(pool):
    return pool.workers[0].pid


def test_supervisor_survives_every_exception(monkeypatch):
    errors = [RuntimeError("a bug"), OSError(errno.EMFILE, "Too many open files"), MemoryError()]
    remaining, reported, done = list(errors), [], threading.Event()

    def action():
        if remaining:
            raise remaining.pop(0)
        done.set()

    supervisor = Supervisor("test", action, lambda error, _: reported.append(error))
    supervisor.start()
    assert done.wait(60)
    supervisor.stopping.set()
    supervisor.join()
    assert reported == errors


def test_pause_grows_to_maximum(monkeypatch):
    monkeypatch.undo()
    assert [pause_after(attempts) <= 0.1 * 2**attempts for attempts in range(5)] == [True] * 5
    for attempts in (10, 2000):  # 2.0**2000 overflows
        assert MAX_PAUSE_SECONDS / 2 <= pause_after(attempts) <= MAX_PAUSE_SECONDS


def test_stopping_supervisor_ends_its_pause(monkeypatch):
    monkeypatch.setattr("kinema.jobs.supervisor.pause_after", lambda _: 3600.0)
    failed = threading.Event()
    supervisor = Supervisor("test", lambda: 1 / 0, lambda *_: failed.set())
    supervisor.start()
    assert failed.wait(60)
    supervisor.stopping.set()
    supervisor.join()


def test_job_stays_queued_until_a_worker_can_be_started(settings, monkeypatch, caplog):
    with monkeypatch.context() as missing:
        missing.setattr(sys, "executable", "/nowhere/python")
        with Queue(settings, "queue_work:Work") as queue:
            wait_until(lambda: "can't be started" in "".join(queue.problems))
            assert queue.problems == ("the worker can't be started: No such file or directory",)
            job = queue.submit(NewJob(request(), image=IMAGE))
            wait_until(lambda: len([text for text in caplog.messages if "next attempt in" in text]) > 2)
            assert (queue.ready, queue.worker_pids, queue.get(job.id).status) == (True, (None,), "queued")
            missing.undo()
            assert wait_finished(queue, job).status == "completed"
            assert queue.problems == ()


def test_job_is_requeued_with_its_parts_if_worker_cannot_be_replaced(queue, task_log, monkeypatch):
    monkeypatch.setattr("kinema.jobs.worker.START_SECONDS", 0.1)
    wait_until(lambda: queue.worker_pids != (None,))
    with monkeypatch.context() as missing:
        missing.setattr(sys, "executable", "/nowhere/python")
        job = queue.submit(NewJob(request(model="killed once"), image=IMAGE))
        wait_until(lambda: queue.get(job.id).attempts == 1 and queue.get(job.id).status == "queued")
        waiting = queue.get(job.id)
        assert (waiting.queue_position, waiting.stage, waiting.progress, waiting.started_at) == (1, None, 0, None)
        assert queue.running() == 0
    job = wait_finished(queue, job)
    assert (job.status, job.attempts) == ("completed", 1)
    assert [part for _, part, *_ in started_tasks(task_log)] == ["latents", "video", "video"]


@pytest.mark.parametrize("act", ["cancel", "delete"])
def test_cancel_or_delete_of_requeued_job_deletes_its_files(queue, settings, monkeypatch, act):
    monkeypatch.setattr("kinema.jobs.worker.START_SECONDS", 0.1)
    wait_until(lambda: queue.worker_pids != (None,))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    job = queue.submit(NewJob(request(model="killed once"), image=IMAGE))
    wait_until(lambda: queue.get(job.id).attempts == 1 and queue.get(job.id).status == "queued")
    assert list((settings.data_dir / "jobs").iterdir())
    getattr(queue, act)(job.id)
    assert not list((settings.data_dir / "jobs").iterdir())


@pytest.fixture
def no_descriptors():
    """A function that opens all file descriptors of this process, and returns a function that closes them."""
    descriptors = []

    def close_all():
        while descriptors:
            os.close(descriptors.pop())

    def open_all():
        with contextlib.suppress(OSError):
            while True:
                descriptors.append(os.open(os.devnull, os.O_RDONLY))
        return close_all

    yield open_all
    close_all()


def test_worker_is_replaced_once_descriptors_are_available(pool, no_descriptors):
    wait_until(lambda: pid(pool))
    before = pid(pool)
    close_all = no_descriptors()
    os.kill(before, 9)
    wait_until(lambda: pool.workers[0].problem)
    problem, free = pool.workers[0].problem, pool.free_models()
    close_all()
    assert problem == "the worker on cpu can't be started: Too many open files"
    assert free == []
    wait_until(lambda: pid(pool) not in (None, before))
    assert (pool.workers[0].problem, pool.free_models()) == (None, [None])


def test_worker_that_is_never_ready_is_restarted(monkeypatch):
    monkeypatch.setattr("kinema.jobs.worker.READY_SECONDS", 0.001)
    pool = WorkerPool("queue_work:Work", ("cpu",), 60, lambda: None)
    pool.start()
    wait_until(lambda: "can't be started" in str(pool.workers[0].problem))
    assert "not ready within 0.001 seconds" in pool.workers[0].problem
    pool.close()


def test_worker_that_exits_at_start_does_not_count_as_attempt(settings, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/bin/false")
        with Queue(settings, "queue_work:Work") as queue:
            job = queue.submit(NewJob(request(), image=IMAGE))
            wait_until(lambda: "can't be started" in "".join(queue.problems))
            assert queue.problems == ("the worker can't be started: it ended at once: exit code 1",)
            broken.undo()
            job = wait_finished(queue, job)
    assert (job.status, job.attempts) == ("completed", 0)


def test_queue_runs_jobs_once_its_lock_file_can_be_opened(settings):
    settings.data_dir.mkdir()
    lock = settings.data_dir / ".scheduler"
    lock.mkdir()
    with Queue(settings, "queue_work:Work") as queue:
        wait_until(lambda: queue.problems)
        assert not queue.ready
        lock.rmdir()
        assert wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE))).status == "completed"
        assert (queue.ready, queue.problems) == (True, ())


def test_problems_say_what_a_starting_worker_does(settings, task_log):
    with Queue(settings, "queue_work:SlowStart") as queue:
        wait_until(lambda: queue.problems == ("the worker is loading a large model",))
        job = queue.submit(NewJob(request(), image=IMAGE))
        assert queue.worker_pids == (None,)
        release_jobs(task_log)
        assert wait_finished(queue, job).status == "completed"
        assert queue.problems == ()


def test_job_completes_after_its_thread_failed_to_start(queue, monkeypatch):
    submit = concurrent.futures.ThreadPoolExecutor.submit
    refused = []

    def refuse(self, task, /, *arguments, **more):
        if task.__name__ == "_execute_workflow_wthread" and len(refused) < 2:
            refused.append(task)
            raise RuntimeError("can't start new thread")
        return submit(self, task, *arguments, **more)

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", refuse)
    job = wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
    assert (job.status, len(refused)) == ("completed", 2)


def test_job_completes_after_shortage_of_descriptors_and_memory(queue, monkeypatch):
    monkeypatch.setattr("kinema.jobs.scheduler.SHORTAGE_SECONDS", 0.01)
    errors = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENOMEM, "Cannot allocate memory")]

    def clear(folder):
        if errors:
            raise errors.pop()

    monkeypatch.setattr("kinema.jobs.attempt.delete_partial_files", clear)
    job = wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
    assert (job.status, job.attempts, errors) == ("completed", 0, [])


def test_restart_with_fewer_workers_requeues_a_job(settings):
    with Queue(settings, "queue_work:Work", devices=("cpu", "cpu")) as queue:
        jobs = [queue.submit(NewJob(request(seed=seed, **BLOCKED), image=IMAGE)) for seed in range(2)]
        wait_until(lambda: all(queue.get(job.id).stage == "denoise" for job in jobs))
    with Queue(settings, "queue_work:Work", devices=("cpu",)) as queue:
        wait_until(lambda: {queue.get(job.id).status for job in jobs} == {"in_progress", "queued"})
        for job in jobs:
            queue.cancel(job.id)


def test_job_that_dbos_failed_to_recover_is_requeued(settings, task_log, monkeypatch):
    monkeypatch.setattr("kinema.jobs.scheduler.HOUSEKEEPING_SECONDS", 0.1)
    server = Server(settings)
    try:
        with Queue(settings) as client:
            job = client.submit(NewJob(request(**BLOCKED), image=IMAGE))
            wait_until(lambda: client.get(job.id).stage == "denoise")
    finally:
        server.kill()

    def fail(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("dbos._recovery._recover_workflow", fail)
    release_jobs(task_log)
    with Queue(settings, "queue_work:Work") as queue:
        assert wait_finished(queue, job).status == "completed"


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_job_restored_from_backup_completes_and_keeps_its_video(settings, task_log, monkeypatch, status):
    """Simulates a restored backup of the table of jobs with a newer database of DBOS."""
    monkeypatch.setattr("kinema.jobs.scheduler.HOUSEKEEPING_SECONDS", 0.1)
    with Queue(settings, "queue_work:Work") as queue:
        job = wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
        video = queue.result(job.id)
        content = video.read_bytes()
    with contextlib.closing(sqlite3.connect(settings.data_dir / "jobs.sqlite3")) as database, database:
        database.execute("UPDATE kinema_jobs SET status = ?, completed_at = NULL", [status])
    with Queue(settings, "queue_work:Work") as queue:
        wait_until(lambda: queue.get(job.id).finished)
        assert queue.get(job.id).status == "completed"
        assert queue.result(job.id).read_bytes() == content
        assert wait_finished(queue, queue.submit(NewJob(request(seed=5), image=IMAGE))).status == "completed"
