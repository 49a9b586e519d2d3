"""What is accepted is done, once, to the same bytes, whatever dies meanwhile: real processes, really killed."""

import contextlib
import os
import random
import signal
import subprocess
import time
from types import SimpleNamespace

import psutil
import pytest
from queue_helpers import HELD, IMAGE, PATIENCE, Server, begun, finished, let_go, request, until
from queue_work import drawn, expected

from kinema.jobs import Queue
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


def at(client, job, stage):
    until(lambda: client.get(job.id).stage == stage)


def test_after_a_crash_a_job_goes_on_at_the_part_it_was_in_to_the_same_bytes(server, client, notes):
    asked = request(prompt="a red balloon", **HELD)
    job = client.submit(asked)
    at(client, job, "denoise")
    server.kill()
    let_go(notes)
    server.start()
    job = finished(client, job)
    assert (job.status, job.attempts) == ("completed", 0)
    assert client.result(job.id).read_bytes() == expected(asked, drawn(asked))
    assert [part for _, part, *_ in begun(notes)] == ["image", "latents", "latents", "video"]


def test_workers_end_with_the_server_however_it_ends(server, client):
    job = client.submit(request(**HELD), image=IMAGE)
    at(client, job, "denoise")
    workers = server.workers()
    assert workers
    server.kill()
    _, alive = psutil.wait_procs(workers, PATIENCE)
    assert not alive


def test_a_queue_that_is_closed_puts_its_job_back_and_it_goes_on_when_opened(settings, notes):
    with Queue(settings, "queue_work:Work") as queue:
        job = queue.submit(request(**HELD), image=IMAGE)
        until(lambda: queue.get(job.id).stage == "denoise")
    let_go(notes)
    with Queue(settings, "queue_work:Work") as queue:
        job = finished(queue, job)
        assert (job.status, job.attempts) == ("completed", 0)
        assert queue.result(job.id).read_bytes() == expected(job.request, IMAGE)


def test_a_queue_that_closes_with_grace_finishes_what_runs(settings):
    queue = Queue(settings, "queue_work:Work")
    queue.open()
    job = queue.submit(request(motion_bucket_id=30), image=IMAGE)
    until(lambda: queue.get(job.id).status == "in_progress")
    queue.close(grace=PATIENCE)
    with Queue(settings) as after:
        assert after.get(job.id).status == "completed"


def test_a_job_survives_a_worker_that_dies_under_it(queue, notes):
    job = finished(queue, queue.submit(request(model="killed once"), image=IMAGE))
    assert (job.status, job.attempts) == ("completed", 1)
    assert queue.result(job.id).read_bytes() == expected(job.request, IMAGE)
    assert [part for _, part, *_ in begun(notes)] == ["latents", "video", "video"]


def test_a_job_under_which_every_worker_dies_fails_with_the_reason_and_the_next_goes_on(queue):
    job = finished(queue, queue.submit(request(model="killed"), image=IMAGE))
    assert (job.status, job.error.code, job.attempts) == ("failed", "worker_died", 3)
    assert "killed by SIGKILL" in job.error.message
    assert finished(queue, queue.submit(request(), image=IMAGE)).status == "completed"


def test_a_worker_that_hangs_is_replaced_and_the_job_goes_on(tmp_path, notes):
    with Queue(Settings(data_dir=tmp_path / "data", step_timeout=3, min_free_gb=0), "queue_work:Work") as queue:
        job = finished(queue, queue.submit(request(model="hangs"), image=IMAGE))
        assert (job.status, job.error) == ("completed", None)
        assert job.attempts >= 1  # on a machine that stands still for 3 seconds, more


def test_work_that_can_not_be_imported_fails_its_jobs_with_the_reason(settings):
    with Queue(settings, "queue_work:Wrok") as queue:
        job = finished(queue, queue.submit(request(), image=IMAGE))
        assert "queue_work:Wrok can't be loaded: AttributeError" in job.error.message


def test_another_process_takes_over_when_the_first_one_dies(server, settings):
    until(server.workers)
    with Queue(settings, "queue_work:Work") as second:
        job = second.submit(request(**HELD), image=IMAGE)
        at(second, job, "denoise")
        assert not second.ready
        server.kill()
        until(lambda: second.ready)
        assert second.cancel(job.id).error.code == "cancelled"
        assert finished(second, second.submit(request(), image=IMAGE)).status == "completed"


def test_two_workers_do_two_jobs_at_once(settings, notes):
    with Queue(settings, "queue_work:Work", devices=("cpu", "cpu")) as queue:
        jobs = [queue.submit(request(seed=seed, **HELD), image=IMAGE) for seed in range(2)]
        until(lambda: all(queue.get(job.id).stage == "denoise" for job in jobs))
        let_go(notes)
        for job in jobs:
            assert queue.result(finished(queue, job).id).read_bytes() == expected(job.request, IMAGE)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_fails_its_job_and_the_queue_goes_on_when_there_is_room(small_disk, notes, caplog):
    with Queue(Settings(data_dir=small_disk, min_free_gb=0), "queue_work:Work") as queue:
        finished(queue, queue.submit(request(), image=IMAGE))
        job = queue.submit(request(**HELD), image=IMAGE)
        at(queue, job, "denoise")
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            for _ in range(4096):
                file.write(bytes(1024))
                file.flush()
        let_go(notes)
        until(lambda: "full" in caplog.text or queue.get(job.id).finished)
        filler.unlink()
        job = finished(queue, job)
        assert job.status == "completed" or job.error.code in ("insufficient_disk", "internal_error")
        assert finished(queue, queue.submit(request(), image=IMAGE)).status == "completed"
        assert not list(small_disk.rglob(".part-*"))


@pytest.mark.slow
def test_whatever_is_killed_whenever_every_job_is_completed_once_to_the_same_bytes(server, client, settings, notes):
    """Workers, the server and both are killed at random moments, until all jobs are done."""
    moments = random.Random(4)
    jobs = [
        client.submit(request(seed=seed, motion_bucket_id=20, num_inference_steps=10), image=IMAGE)
        if seed % 2
        else client.submit(request(seed=seed, motion_bucket_id=20, num_inference_steps=10, prompt=f"scene {seed}"))
        for seed in range(12)
    ]
    for kill in range(10):
        time.sleep(moments.uniform(0.2, 3))
        for worker in server.workers() if kill % 3 else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        if kill % 3 != 1:
            server.kill()
            server.start()
    for job in jobs:
        done = finished(client, job)
        source = IMAGE if job.request.prompt is None else drawn(job.request)
        assert (done.status, done.error) == ("completed", None)
        assert client.result(job.id).read_bytes() == expected(job.request, source)
    until(lambda: not list(settings.data_dir.rglob(".part-*")))
    assert client.waiting() == 0


def test_a_job_that_dbos_gave_up_is_failed_counted_and_cleared_away(settings, monkeypatch):
    """Only a server that died fifty times over one job comes to this, so DBOS's answer is made up."""
    from dbos import DBOS

    ended = []
    queue = Queue(settings, "queue_work:Work", ended=ended.append)  # not opened: nothing else runs the job
    job = queue.submit(request(), image=IMAGE)
    runner = queue._runner
    assert runner._store.claim([None])[0] == job.id
    runner._files.job(job.id).mkdir()
    given_up = SimpleNamespace(status="MAX_RECOVERY_ATTEMPTS_EXCEEDED", app_version="1")
    monkeypatch.setattr(DBOS, "get_workflow_status", lambda _: given_up)
    runner._reconcile()
    failed = queue.get(job.id)
    assert (failed.status, failed.error.code) == ("failed", "interrupted")
    assert [each.id for each in ended] == [job.id]
    assert not runner._files.job(job.id).exists()
    runner._store.close()
