"""A worker, or the thread that runs jobs, comes back by itself once what it lacked is there again."""

import concurrent.futures
import contextlib
import errno
import os
import sqlite3
import sys
import threading

import pytest
from queue_helpers import HELD, IMAGE, Server, begun, finished, let_go, request, until

from kinema.jobs import Queue
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


def test_a_supervised_thread_survives_every_exception(monkeypatch):
    errors = [RuntimeError("a bug"), OSError(errno.EMFILE, "Too many open files"), MemoryError()]
    left, seen, done = list(errors), [], threading.Event()

    def action():
        if left:
            raise left.pop(0)
        done.set()

    supervisor = Supervisor("test", action, lambda error, _: seen.append(error))
    supervisor.start()
    assert done.wait(60)
    supervisor.stopping.set()
    supervisor.join()
    assert seen == errors


def test_pauses_grow_to_a_bound_after_any_number_of_attempts(monkeypatch):
    monkeypatch.undo()
    assert [pause_after(attempts) <= 0.1 * 2**attempts for attempts in range(5)] == [True] * 5
    for attempts in (10, 2000):  # in floats, 2**2000 is out of range
        assert MAX_PAUSE_SECONDS / 2 <= pause_after(attempts) <= MAX_PAUSE_SECONDS


def test_stopping_a_supervisor_ends_its_pause(monkeypatch):
    monkeypatch.setattr("kinema.jobs.supervisor.pause_after", lambda _: 3600.0)
    failed = threading.Event()
    supervisor = Supervisor("test", lambda: 1 / 0, lambda *_: failed.set())
    supervisor.start()
    assert failed.wait(60)
    supervisor.stopping.set()
    supervisor.join()


def test_a_job_stays_queued_while_no_worker_can_be_started_and_is_done_once_one_can(settings, monkeypatch, caplog):
    with monkeypatch.context() as missing:
        missing.setattr(sys, "executable", "/nowhere/python")
        with Queue(settings, "queue_work:Work") as queue:
            until(lambda: queue.problems)
            assert queue.problems == ("the worker on auto can't be started: No such file or directory",)
            job = queue.submit(request(), image=IMAGE)
            until(lambda: len([text for text in caplog.messages if "next attempt in" in text]) > 2)
            assert (queue.ready, queue.workers, queue.get(job.id).status) == (True, (None,), "queued")
            missing.undo()
            assert finished(queue, job).status == "completed"
            assert queue.problems == ()


def test_a_job_whose_worker_can_not_be_replaced_is_queued_again_and_keeps_its_parts(queue, notes, monkeypatch):
    monkeypatch.setattr("kinema.jobs.worker_pool.START_SECONDS", 0.1)
    until(lambda: queue.workers != (None,))
    with monkeypatch.context() as missing:
        missing.setattr(sys, "executable", "/nowhere/python")
        job = queue.submit(request(model="killed once"), image=IMAGE)
        until(lambda: queue.get(job.id).attempts == 1 and queue.get(job.id).status == "queued")
        waiting = queue.get(job.id)
        assert (waiting.queue_position, waiting.stage, waiting.progress, waiting.started_at) == (1, None, 0, None)
        assert queue.running() == 0
    job = finished(queue, job)
    assert (job.status, job.attempts) == ("completed", 1)
    assert [part for _, part, *_ in begun(notes)] == ["latents", "video", "video"]


@pytest.mark.parametrize("act", ["cancel", "delete"])
def test_a_job_that_was_queued_again_leaves_no_files_when_it_is_no_longer_wanted(queue, settings, monkeypatch, act):
    monkeypatch.setattr("kinema.jobs.worker_pool.START_SECONDS", 0.1)
    until(lambda: queue.workers != (None,))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    job = queue.submit(request(model="killed once"), image=IMAGE)
    until(lambda: queue.get(job.id).attempts == 1 and queue.get(job.id).status == "queued")
    assert list((settings.data_dir / "jobs").iterdir())
    getattr(queue, act)(job.id)
    assert not list((settings.data_dir / "jobs").iterdir())


@pytest.fixture
def no_descriptors():
    """Take all file descriptors of this process; what is returned gives them back."""
    held = []

    def give_back():
        while held:
            os.close(held.pop())

    def take():
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        return give_back

    yield take
    give_back()


def test_a_worker_is_replaced_once_there_are_descriptors_again(pool, no_descriptors):
    until(lambda: pid(pool))
    before = pid(pool)
    give_back = no_descriptors()
    os.kill(before, 9)
    until(lambda: pool.workers[0].problem)
    problem, free = pool.workers[0].problem, pool.free_models()
    give_back()
    assert problem == "the worker on cpu can't be started: Too many open files"
    assert free == []
    until(lambda: pid(pool) not in (None, before))
    assert (pool.workers[0].problem, pool.free_models()) == (None, [None])


def test_a_worker_that_is_never_ready_is_started_again(monkeypatch):
    monkeypatch.setattr("kinema.jobs.worker_pool.READY_SECONDS", 0.001)
    pool = WorkerPool("queue_work:Work", ("cpu",), 60, lambda: None)
    pool.start()
    until(lambda: pool.workers[0].problem)
    assert "not ready within 0.001 seconds" in pool.workers[0].problem
    pool.close()


def test_a_process_that_dies_as_it_starts_is_no_fault_of_a_job(settings, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/bin/false")
        with Queue(settings, "queue_work:Work") as queue:
            job = queue.submit(request(), image=IMAGE)
            until(lambda: queue.problems)
            assert queue.problems == ("the worker on auto can't be started: it ended at once: exit code 1",)
            broken.undo()
            job = finished(queue, job)
    assert (job.status, job.attempts) == ("completed", 0)


def test_the_queue_runs_jobs_once_its_lock_can_be_opened(settings):
    settings.data_dir.mkdir()
    lock = settings.data_dir / ".runner"
    lock.mkdir()
    with Queue(settings, "queue_work:Work") as queue:
        until(lambda: queue.problems)
        assert not queue.ready
        lock.rmdir()
        assert finished(queue, queue.submit(request(), image=IMAGE)).status == "completed"
        assert (queue.ready, queue.problems) == (True, ())


def test_a_job_is_done_although_its_thread_could_not_be_started_at_first(queue, monkeypatch):
    submit = concurrent.futures.ThreadPoolExecutor.submit
    refused = []

    def refuse(self, task, /, *arguments, **more):
        if task.__name__ == "_execute_workflow_wthread" and len(refused) < 2:
            refused.append(task)
            raise RuntimeError("can't start new thread")
        return submit(self, task, *arguments, **more)

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", refuse)
    job = finished(queue, queue.submit(request(), image=IMAGE))
    assert (job.status, len(refused)) == ("completed", 2)


def test_a_job_survives_a_server_without_descriptors(queue, monkeypatch):
    monkeypatch.setattr("kinema.jobs.scheduler.SHORTAGE_SECONDS", 0.01)
    faults = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENOMEM, "Cannot allocate memory")]

    def clear(folder):
        if faults:
            raise faults.pop()

    monkeypatch.setattr("kinema.jobs.scheduler.clear_asides", clear)
    job = finished(queue, queue.submit(request(), image=IMAGE))
    assert (job.status, job.attempts, faults) == ("completed", 0, [])


def test_of_two_jobs_in_progress_one_is_queued_again_where_there_is_one_worker_after_a_restart(settings):
    with Queue(settings, "queue_work:Work", devices=("cpu", "cpu")) as queue:
        jobs = [queue.submit(request(seed=seed, **HELD), image=IMAGE) for seed in range(2)]
        until(lambda: all(queue.get(job.id).stage == "denoise" for job in jobs))
    with Queue(settings, "queue_work:Work", devices=("cpu",)) as queue:
        until(lambda: {queue.get(job.id).status for job in jobs} == {"in_progress", "queued"})
        for job in jobs:
            queue.cancel(job.id)


def test_a_job_that_dbos_failed_to_recover_is_queued_again(settings, notes, monkeypatch):
    monkeypatch.setattr("kinema.jobs.scheduler.HOUSEKEEPING_SECONDS", 0.1)
    server = Server(settings)
    try:
        with Queue(settings) as client:
            job = client.submit(request(**HELD), image=IMAGE)
            until(lambda: client.get(job.id).stage == "denoise")
    finally:
        server.kill()

    def fail(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("dbos._recovery._recover_workflow", fail)
    let_go(notes)
    with Queue(settings, "queue_work:Work") as queue:
        assert finished(queue, job).status == "completed"


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_a_job_whose_record_is_older_than_dbos_is_made_again_and_keeps_its_video(settings, notes, monkeypatch, status):
    """As where a backup of the jobs' database was restored without DBOS's."""
    monkeypatch.setattr("kinema.jobs.scheduler.HOUSEKEEPING_SECONDS", 0.1)
    with Queue(settings, "queue_work:Work") as queue:
        job = finished(queue, queue.submit(request(), image=IMAGE))
        video = queue.result(job.id)
        made = video.read_bytes()
    with contextlib.closing(sqlite3.connect(settings.data_dir / "jobs.sqlite3")) as database, database:
        database.execute("UPDATE kinema_jobs SET status = ?, completed_at = NULL", [status])
    with Queue(settings, "queue_work:Work") as queue:
        until(lambda: queue.get(job.id).finished)
        assert queue.get(job.id).status == "completed"
        assert queue.result(job.id).read_bytes() == made
        assert finished(queue, queue.submit(request(seed=5), image=IMAGE)).status == "completed"
