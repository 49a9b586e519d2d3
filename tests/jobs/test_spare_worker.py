"""A spare process replaces a worker that ended. Uses real processes."""

import contextlib
import os
import signal
import time

import psutil
import pytest
from queue_helpers import IMAGE, request, started_tasks, wait_finished, wait_until
from queue_work import expected_video

from kinema.jobs import NewJob, Queue
from kinema.jobs.worker_devices import on_gpus
from kinema.jobs.worker_pool import WorkerPool


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("kinema.jobs.spare_worker.POLL_SECONDS", 0.05)


@pytest.fixture
def pool():
    pool = WorkerPool("queue_work:DeviceOfProcess", ("cpu", "mps"), 60, lambda: None, has_spare=True)
    pool.start()
    yield pool
    pool.close()


def wait_for_spare(pool, other_than=None):
    wait_until(lambda: pool.spare.pid not in (None, other_than))
    return pool.spare.pid


def command_of(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def test_spare_becomes_the_worker_of_the_device_whose_worker_was_killed(pool):
    spare = wait_for_spare(pool)
    os.kill(pool.workers[1].pid, signal.SIGKILL)
    wait_until(lambda: pool.workers[1].pid == spare)
    assert [worker.state.place for worker in pool.workers] == ["cpu", "mps"]
    assert pool.workers[0].pid not in (None, spare, wait_for_spare(pool, other_than=spare))


def test_spare_starts_after_the_workers_and_ends_with_them(pool):
    assert (pool.is_ready, pool.spare.pid) == (False, None)
    process = psutil.Process(wait_for_spare(pool))
    assert pool.is_ready
    pool.close()
    assert not process.is_running()
    pool.start()
    assert wait_for_spare(pool) != process.pid


def test_worker_starts_without_a_spare_once_that_has_ended(pool, caplog):
    os.kill(wait_for_spare(pool), signal.SIGKILL)
    wait_until(lambda: "there is no spare worker for 600 seconds" in caplog.text)
    assert "killed by SIGKILL" in caplog.text
    before = pool.workers[0].pid
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: pool.workers[0].pid not in (None, before))
    assert pool.spare.pid is None


def test_spare_that_dies_at_the_moment_it_is_needed_delays_the_worker_only(pool, monkeypatch):
    spare, before = wait_for_spare(pool), pool.workers[0].pid
    monkeypatch.setattr("kinema.jobs.spare_worker.POLL_SECONDS", 3600.0)
    time.sleep(0.2)  # from now on, nobody notices the end of the spare
    for process in (spare, before):
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: pool.workers[0].pid not in (None, before))
    assert pool.workers[0].pid != spare


def test_no_spare_without_much_free_memory(monkeypatch):
    monkeypatch.setattr("kinema.jobs.spare_worker.MIN_FREE_BYTES", 2**62)
    pool = WorkerPool("queue_work:Work", ("cpu",), 60, lambda: None, has_spare=True)
    pool.start()
    wait_until(lambda: pool.is_ready)
    time.sleep(0.5)
    processes = [word for child in psutil.Process().children() for word in command_of(child)]
    pool.close()
    assert "kinema.jobs.worker_process" in processes
    assert "spare" not in processes


def test_job_of_a_killed_worker_completes_on_the_spare_with_the_same_bytes(settings, task_log, monkeypatch):
    monkeypatch.setattr("kinema.jobs.scheduler.on_gpus", lambda _devices: True)
    with Queue(settings, "queue_work:Work", devices=("cpu",)) as queue:
        spare = wait_for_spare(queue._scheduler.pool)
        job = wait_finished(queue, queue.submit(NewJob(request(model="killed once"), image=IMAGE)))
        assert (job.status, job.attempts) == ("completed", 1)
        assert queue.result(job.id).read_bytes() == expected_video(job.request, IMAGE)
    tasks = started_tasks(task_log)
    parts = [(task[1], task[-1] == str(spare)) for task in tasks]
    assert (parts[:2], parts[-1]) == ([("latents", False), ("video", False)], ("video", True))


@pytest.mark.parametrize(
    ("devices", "gpus", "expected"),
    [
        (("auto",), 0, False),
        (("auto",), 1, True),
        (("cpu",), 1, False),
        (("mps",), 0, False),
        (("cuda:1",), 2, True),
    ],
)
def test_only_workers_on_gpus_have_a_spare(monkeypatch, devices, gpus, expected):
    monkeypatch.setattr("kinema.jobs.worker_devices.count_gpus", lambda: gpus)
    assert on_gpus(devices) == expected
