"""A job whose content is refused fails, and nothing of it is kept."""

from pathlib import Path

import pytest
from queue_helpers import IMAGE, request, stored_files, wait_finished, wait_until

from kinema.jobs import NewJob, Queue
from kinema.jobs.job import Failure
from kinema.models.catalog import request_for
from kinema.settings import Settings

LAST = b"bytes of another uploaded image"
REFUSED = Failure("content_refused", "the video is refused; use another image")


def test_refused_job_fails_and_leaves_no_file(queue, settings):
    job = wait_finished(queue, queue.submit(NewJob(request(model="refused"), image=IMAGE, last_image=LAST)))
    assert (job.status, job.error, job.image, job.last_image) == ("failed", REFUSED, None, None)
    assert queue.image(job.id) is None
    wait_until(lambda: stored_files(settings.data_dir) == [])
    assert queue.preview(job.id) is None
    wait_until(lambda: queue._table.deletions() == [])
    queue.delete(job.id)


def test_generated_image_of_a_refused_job_is_deleted(queue, settings):
    job = wait_finished(queue, queue.submit(NewJob(request(model="refused", prompt="a fox"))))
    assert (job.error, job.image) == (REFUSED, None)
    wait_until(lambda: stored_files(settings.data_dir) == [])


def test_image_of_a_refused_job_is_kept_for_another_job(queue):
    other = wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
    wait_finished(queue, queue.submit(NewJob(request(model="refused"), image=IMAGE)))
    wait_until(lambda: queue._table.deletions() == [])
    assert queue.image(other.id).read_bytes() == IMAGE
    assert queue.result(other.id).exists()


def test_files_of_a_job_that_was_refused_before_a_crash_are_swept(settings):
    with Queue(settings) as queue:
        job = queue.submit(NewJob(request(), image=IMAGE, last_image=LAST))
        queue._table.claim([None])
        assert queue._table.refuse(job.id, REFUSED, 60)
        assert not queue._table.refuse(job.id, REFUSED, 60)
        assert len(stored_files(settings.data_dir)) == 2
    with Queue(settings, "queue_work:Work") as queue:
        wait_until(lambda: stored_files(settings.data_dir) == [])
        assert queue.get(job.id).error == REFUSED


def test_inputs_of_a_refused_job_in_a_store_are_deleted(tmp_path, task_log):
    store = tmp_path / "store"
    store.mkdir()
    settings = Settings(data_dir=tmp_path / "data", min_free_gb=0, store=store.as_uri())
    with Queue(settings, "queue_work:Work") as queue:
        job = wait_finished(queue, queue.submit(NewJob(request(model="refused"), image=IMAGE, last_image=LAST)))
        assert job.error == REFUSED
        wait_until(lambda: [path for path in store.rglob("*") if path.is_file() and job.id in str(path)] == [])


@pytest.mark.slow
def test_safety_check_refuses_a_video_with_postgresql(postgresql_url, tmp_path, monkeypatch):
    checked = {"SAFETY": "video", "SAFETY_THRESHOLD": "1e-30"}  # every score is above it
    for name, value in {"DEVICE": "cpu", "MODEL": "pocket", **checked}.items():
        monkeypatch.setenv(f"KINEMA_{name}", value)
    settings = Settings(data_dir=tmp_path / "data", min_free_gb=0, database_url=postgresql_url)
    image = (Path(__file__).parents[2] / "examples" / "rocket.jpg").read_bytes()
    small = {"width": 96, "height": 64, "num_frames": 2, "num_inference_steps": 1, "seed": 3}
    with Queue(settings, "kinema.serving.engine_work:ServerWork") as queue:
        job = wait_finished(queue, queue.submit(NewJob(request_for(model="pocket", **small), image=image)))
        assert (job.status, job.error.code, job.image) == ("failed", "content_refused", None)
        assert "the safety check of this server refuses the video" in str(job.error.message)
        wait_until(lambda: stored_files(settings.data_dir) == [])
        assert queue.get(job.id).request.seed == 3
