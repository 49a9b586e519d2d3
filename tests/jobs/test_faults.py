"""Accepted jobs complete once, with the same bytes, when workers or the server are killed. Uses real processes."""

import contextlib
import os
import random
import signal
import subprocess
import time
from types import SimpleNamespace

import psutil
import pytest
from queue_helpers import (
    BLOCKED,
    IMAGE,
    TIMEOUT,
    Server,
    release_jobs,
    request,
    started_tasks,
    wait_finished,
    wait_until,
)
from queue_work import expected_image, expected_video

from kinema.jobs import NewJob, Queue
from kinema.settings import Settings


@pytest.fixture
def server(settings):
    server = Server(settings)
    yield server
    server.kill()


@pytest.fixture
def client(settings):
    with Queue(settings) as client:
        yield client


def wait_for_stage(client, job, stage):
    wait_until(lambda: client.get(job.id).stage == stage)


@pytest.mark.slow  # as test_crash_keeps_finished_parts of both databases
def test_job_resumes_at_interrupted_part_after_crash(server, client, task_log):
    video_request = request(prompt="a red balloon", **BLOCKED)
    job = client.submit(NewJob(video_request))
    wait_for_stage(client, job, "denoise")
    server.kill()
    release_jobs(task_log)
    server.start()
    job = wait_finished(client, job)
    assert (job.status, job.attempts) == ("completed", 0)
    assert client.result(job.id).read_bytes() == expected_video(video_request, expected_image(video_request))
    assert [part for _, part, *_ in started_tasks(task_log)] == ["image", "latents", "latents", "video"]


def test_workers_exit_when_server_is_killed(server, client):
    job = client.submit(NewJob(request(**BLOCKED), image=IMAGE))
    wait_for_stage(client, job, "denoise")
    workers = server.workers()
    assert workers
    server.kill()
    _, alive = psutil.wait_procs(workers, TIMEOUT)
    assert not alive


def test_close_requeues_running_job_and_next_open_completes_it(settings, task_log):
    with Queue(settings, "queue_work:Work") as queue:
        job = queue.submit(NewJob(request(**BLOCKED), image=IMAGE))
        wait_until(lambda: queue.get(job.id).stage == "denoise")
    release_jobs(task_log)
    with Queue(settings, "queue_work:Work") as queue:
        job = wait_finished(queue, job)
        assert (job.status, job.attempts) == ("completed", 0)
        assert queue.result(job.id).read_bytes() == expected_video(job.request, IMAGE)


def test_close_with_grace_completes_running_job(settings):
    queue = Queue(settings, "queue_work:Work")
    queue.open()
    job = queue.submit(NewJob(request(motion_bucket_id=30), image=IMAGE))
    wait_until(lambda: queue.get(job.id).status == "in_progress")
    queue.close(grace=TIMEOUT)
    with Queue(settings) as after:
        assert after.get(job.id).status == "completed"


def test_job_completes_after_its_worker_died(queue, task_log):
    job = wait_finished(queue, queue.submit(NewJob(request(model="killed once"), image=IMAGE)))
    assert (job.status, job.attempts) == ("completed", 1)
    assert queue.result(job.id).read_bytes() == expected_video(job.request, IMAGE)
    assert [part for _, part, *_ in started_tasks(task_log)] == ["latents", "video", "video"]


def test_job_fails_after_three_workers_died_and_next_job_completes(queue):
    job = wait_finished(queue, queue.submit(NewJob(request(model="killed"), image=IMAGE)))
    assert (job.status, job.error.code, job.attempts) == ("failed", "worker_died", 3)
    assert "killed by SIGKILL" in job.error.message
    assert wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE))).status == "completed"


def test_hung_worker_is_replaced_and_job_completes(tmp_path, task_log):
    with Queue(Settings(data_dir=tmp_path / "data", step_timeout=3, min_free_gb=0), "queue_work:Work") as queue:
        job = wait_finished(queue, queue.submit(NewJob(request(model="hangs"), image=IMAGE)))
        assert (job.status, job.error) == ("completed", None)
        assert job.attempts >= 1  # more on a machine that stalls for 3 seconds


def test_import_error_of_work_fails_jobs_with_the_error(settings):
    with Queue(settings, "queue_work:Wrok") as queue:
        job = wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
        assert "queue_work:Wrok can't be loaded: AttributeError" in job.error.message


def test_second_process_takes_over_when_first_is_killed(server, settings):
    wait_until(server.workers)
    with Queue(settings, "queue_work:Work") as second:
        job = second.submit(NewJob(request(**BLOCKED), image=IMAGE))
        wait_for_stage(second, job, "denoise")
        assert not second.ready
        server.kill()
        wait_until(lambda: second.ready)
        assert second.cancel(job.id).error.code == "cancelled"
        assert wait_finished(second, second.submit(NewJob(request(), image=IMAGE))).status == "completed"


def test_two_workers_run_two_jobs_in_parallel(settings, task_log):
    with Queue(settings, "queue_work:Work", devices=("cpu", "cpu")) as queue:
        jobs = [queue.submit(NewJob(request(seed=seed, **BLOCKED), image=IMAGE)) for seed in range(2)]
        wait_until(lambda: all(queue.get(job.id).stage == "denoise" for job in jobs))
        release_jobs(task_log)
        for job in jobs:
            assert queue.result(wait_finished(queue, job).id).read_bytes() == expected_video(job.request, IMAGE)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, if one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_fails_job_and_queue_recovers(small_disk, task_log, caplog):
    with Queue(Settings(data_dir=small_disk, min_free_gb=0), "queue_work:Work") as queue:
        wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
        job = queue.submit(NewJob(request(**BLOCKED), image=IMAGE))
        wait_for_stage(queue, job, "denoise")
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            for _ in range(4096):
                file.write(bytes(1024))
                file.flush()
        release_jobs(task_log)
        wait_until(lambda: "full" in caplog.text or queue.get(job.id).finished)
        filler.unlink()
        job = wait_finished(queue, job)
        assert job.status == "completed" or job.error.code in ("insufficient_disk", "internal_error")
        assert wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE))).status == "completed"
        assert not list(small_disk.rglob(".part-*"))


@pytest.mark.slow
def test_random_kills_complete_every_job_once(server, client, settings, task_log):
    """Kill workers, the server or both at random moments."""
    rng = random.Random(4)
    jobs = [
        client.submit(NewJob(request(seed=seed, motion_bucket_id=20, num_inference_steps=10), image=IMAGE))
        if seed % 2
        else client.submit(
            NewJob(request(seed=seed, motion_bucket_id=20, num_inference_steps=10, prompt=f"scene {seed}"))
        )
        for seed in range(12)
    ]
    for kill in range(10):
        time.sleep(rng.uniform(0.2, 3))
        for worker in server.workers() if kill % 3 else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        if kill % 3 != 1:
            server.kill()
            server.start()
    for job in jobs:
        done = wait_finished(client, job)
        source = IMAGE if job.request.prompt is None else expected_image(job.request)
        assert (done.status, done.error) == ("completed", None)
        assert client.result(job.id).read_bytes() == expected_video(job.request, source)
    wait_until(lambda: not list(settings.data_dir.rglob(".part-*")))
    assert client.waiting() == 0


def test_job_that_dbos_gave_up_fails_and_is_cleaned_up(settings, monkeypatch):
    """DBOS's answer is faked, since it takes fifty crashes of the server."""
    from dbos import DBOS

    finished_jobs = []
    queue = Queue(settings, "queue_work:Work", on_finished=finished_jobs.append)  # not open
    job = queue.submit(NewJob(request(), image=IMAGE))
    scheduler = queue._scheduler
    assert scheduler._table.claim([None])[0] == job.id
    scheduler._files.job(job.id).mkdir()
    given_up = SimpleNamespace(status="MAX_RECOVERY_ATTEMPTS_EXCEEDED", app_version="1")
    monkeypatch.setattr(DBOS, "get_workflow_status", lambda _: given_up)
    scheduler._reconcile()
    failed = queue.get(job.id)
    assert (failed.status, failed.error.code) == ("failed", "interrupted")
    assert [each.id for each in finished_jobs] == [job.id]
    assert not scheduler._files.job(job.id).exists()
    scheduler._table.database.close()
