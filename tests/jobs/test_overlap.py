"""A worker process computes the next job while it saves the outputs of the one before. Uses real processes."""

import os
import signal
import threading
from multiprocessing import Pipe

import pytest
from queue_helpers import IMAGE, TIMEOUT, release_jobs, request, started_tasks, wait_finished, wait_until
from queue_work import Work, expected_video

from kinema.jobs import NewJob, worker_process
from kinema.jobs.job import Task
from kinema.jobs.worker_process import Assignment, Runner


def has_started(task_log, job, part):
    return any(task[:2] == (job.id, part) for task in started_tasks(task_log))


def assert_completed(queue, job, attempts=0):
    job = wait_finished(queue, job)
    assert (job.status, job.error, job.attempts) == ("completed", None, attempts)
    assert queue.result(job.id).read_bytes() == expected_video(job.request, IMAGE)


@pytest.fixture
def saving(queue, task_log):
    """A job whose video is being saved, and one that is computed meanwhile."""
    first = queue.submit(NewJob(request(model="blocked save"), image=IMAGE))
    second = queue.submit(NewJob(request(seed=8), image=IMAGE))
    wait_until(lambda: has_started(task_log, second, "latents"))
    return first, second


@pytest.fixture
def waiting(queue, task_log):
    """A job that decodes, and one that its worker process has got but not begun."""
    first = queue.submit(NewJob(request(model="blocked decode"), image=IMAGE))
    second = queue.submit(NewJob(request(seed=8), image=IMAGE))
    wait_until(lambda: queue.get(second.id).status == "in_progress")
    assert not has_started(task_log, second, "latents")
    return first, second


def test_next_job_is_computed_while_video_is_saved(queue, saving, task_log):
    first, second = saving
    assert queue.get(first.id).status == "in_progress"
    release_jobs(task_log)
    assert_completed(queue, first)
    assert_completed(queue, second)
    assert [part for _, part, *_ in started_tasks(task_log)] == ["latents", "video"] * 2


def test_worker_gets_next_job_only_near_the_end_of_denoising(queue, task_log):
    early, second = (
        queue.submit(NewJob(request(model="blocked", num_inference_steps=n, seed=n), image=IMAGE)) for n in (25, 3)
    )
    third = queue.submit(NewJob(request(seed=8), image=IMAGE))
    wait_until(lambda: queue.get(early.id).step == 3)
    assert queue.get(second.id).status == "queued"
    queue.cancel(early.id)
    wait_until(lambda: queue.get(third.id).status == "in_progress")
    assert not has_started(task_log, second, "video")
    release_jobs(task_log)
    assert_completed(queue, second)
    assert_completed(queue, third)


def test_cancel_while_video_is_saved_keeps_next_job(queue, saving, task_log, settings):
    first, second = saving
    queue.cancel(first.id)
    release_jobs(task_log)
    assert_completed(queue, second)
    assert wait_finished(queue, first).error.code == "cancelled"
    wait_until(lambda: not (settings.data_dir / "jobs" / first.id).exists())
    assert len({pid for *_, pid in started_tasks(task_log)}) == 1


def test_worker_killed_while_video_is_saved_completes_both_jobs(queue, saving, task_log):
    first, second = saving
    os.kill(queue.worker_pids[0], signal.SIGKILL)
    release_jobs(task_log)
    assert_completed(queue, first, attempts=1)
    assert_completed(queue, second, attempts=1)


def test_worker_killed_before_second_job_begins_counts_one_attempt(queue, waiting, task_log):
    first, second = waiting
    os.kill(queue.worker_pids[0], signal.SIGKILL)
    release_jobs(task_log)
    assert_completed(queue, first, attempts=1)
    assert_completed(queue, second)


def test_cancel_of_waiting_job_ends_it_and_keeps_running_one(queue, waiting, task_log, settings):
    first, second = waiting
    queue.cancel(second.id)
    wait_until(lambda: not (settings.data_dir / "jobs" / second.id).exists())
    third = queue.submit(NewJob(request(seed=9), image=IMAGE))
    wait_until(lambda: queue.get(third.id).status == "in_progress")  # in the place of the second
    release_jobs(task_log)
    assert_completed(queue, first)
    assert_completed(queue, third)
    assert not has_started(task_log, second, "latents")


def test_with_little_memory_next_job_waits_until_video_is_saved(tmp_path, task_log, monkeypatch):
    monkeypatch.setattr(worker_process, "MIN_FREE_BYTES", 2**62)
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    ours, theirs = Pipe()
    runner = Runner(theirs)
    for number, model in ((1, "blocked save"), (2, "a")):
        task = Task(f"job-{number}", "latents", request(model=model), image)
        video = Task(f"job-{number}", "video", request(model=model), image, tmp_path / "latents")
        folder = tmp_path / str(number)
        folder.mkdir()
        runner.add(Assignment(number, (task, video), folder))
    threading.Thread(target=runner.run_all, args=(Work(), None), daemon=True).start()
    reports = []

    def receive(report):
        while report not in reports:
            assert ours.poll(TIMEOUT)
            reports.append(ours.recv())

    receive((1, "computed", "video"))
    assert not ours.poll(0.3)
    release_jobs(task_log)
    receive((2, "saved", "video"))
    assert reports.index((1, "saved", "video")) < reports.index((2, "started", "latents"))
