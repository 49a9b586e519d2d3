"""Jobs with an image at which the video ends: stored, run again after a crash, shared, and deleted."""

import pytest
from queue_helpers import IMAGE, request, wait_finished, wait_until
from queue_work import expected_video, output

from kinema.errors import IdempotencyKeyReused
from kinema.jobs import NewJob, Queue
from kinema.settings import Settings
from kinema.values import Workload

LAST = b"bytes of another uploaded image"


def expected(request):
    return output(b"video", request, output(b"latents", request, IMAGE + LAST))


@pytest.mark.parametrize("model", ["a", "killed once"])
def test_job_ends_at_its_last_image_also_after_its_worker_died(queue, model):
    job = wait_finished(queue, queue.submit(NewJob(request(model=model), image=IMAGE, last_image=LAST)))
    assert (job.status, job.attempts) == ("completed", model == "killed once")
    assert queue.result(job.id).read_bytes() == expected(job.request) != expected_video(job.request, IMAGE)
    assert queue.find_image(job.last_image).read_bytes() == LAST


def test_prompt_and_last_image_are_combined(queue):
    job = wait_finished(queue, queue.submit(NewJob(request(prompt="a fox"), last_image=LAST)))
    generated = queue.image(job.id).read_bytes()
    assert queue.result(job.id).read_bytes() == output(
        b"video", job.request, output(b"latents", job.request, generated + LAST)
    )


def test_image_is_kept_while_any_job_begins_or_ends_with_it(queue):
    begins = wait_finished(queue, queue.submit(NewJob(request(), image=LAST)))
    ends = wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE, last_image=LAST)))
    queue.delete(begins.id)
    assert queue.find_image(ends.last_image).read_bytes() == LAST
    queue.delete(ends.id)
    assert queue.find_image(ends.last_image) is None
    assert list(queue._files.images.iterdir()) == []


def test_last_image_of_a_crashed_submission_is_swept_and_those_of_jobs_are_kept(settings):
    with Queue(settings) as queue:
        job = queue.submit(NewJob(request(), image=IMAGE, last_image=LAST))
        with pytest.raises(ZeroDivisionError), queue._files.add_images(job.id, b"never", b"stored"):
            raise ZeroDivisionError
    with Queue(settings, "queue_work:Work") as queue:
        assert wait_finished(queue, job).status == "completed"
        assert (queue.unknown_files, len(list(queue._files.images.iterdir()))) == (0, 2)


def test_job_without_the_file_of_its_last_image_fails(settings):
    with Queue(settings) as queue:
        job = queue.submit(NewJob(request(), image=IMAGE, last_image=LAST))
        queue._files.image(job.last_image).unlink()
    with Queue(settings, "queue_work:Work") as queue:
        assert wait_finished(queue, job).error.code == "interrupted"


def test_key_with_another_last_image_is_refused(queue):
    def submit(last_image):
        return queue.submit(NewJob(request(), image=IMAGE, last_image=last_image, idempotency_key="k"))

    assert submit(LAST).id == submit(LAST).id
    for other in (None, IMAGE):
        with pytest.raises(IdempotencyKeyReused):
            submit(other)


def test_job_has_the_work_that_it_was_submitted_with(queue):
    work = Workload(9.5, {"interpolate": 0.25, "upscale": 2.25})
    jobs = [queue.submit(NewJob(request(), image=IMAGE, workload=workload)) for workload in (None, work)]
    assert [queue.get(job.id).workload for job in jobs] == [Workload(request().work), work]
    assert [job.workload for job in jobs] == [Workload(request().work), work]


def test_last_image_in_a_store_reaches_another_server_and_is_deleted(tmp_path, task_log):
    here, there = (
        Settings(
            data_dir=tmp_path / name,
            database_url=f"sqlite:///{tmp_path}/shared.sqlite3",
            store=f"file://{tmp_path}/shared",
            min_free_gb=0,
        )
        for name in ("here", "there")
    )
    with Queue(there, "queue_work:Work") as running, Queue(here) as submitting:
        wait_until(lambda: running.ready)
        job = wait_finished(submitting, submitting.submit(NewJob(request(), image=IMAGE, last_image=LAST)))
        assert submitting.result(job.id).read_bytes() == expected(job.request)
        assert running.find_image(job.last_image).read_bytes() == LAST
        assert sorted(path.name for path in (tmp_path / "shared" / "jobs" / job.id).iterdir()) == [
            "input", "last-input", "video.mp4"
        ]  # fmt: skip
        running.delete(job.id)
        assert not list((tmp_path / "shared" / "jobs").glob("*/*"))
