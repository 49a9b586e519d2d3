"""A job whose content is refused fails, and nothing of it is kept."""

from queue_helpers import IMAGE, request, wait_finished, wait_until

from kinema.jobs import Queue
from kinema.jobs.job import Failure
from kinema.settings import Settings

LAST = b"bytes of another uploaded image"
REFUSED = Failure("content_refused", "the video is refused; use another image")


def stored_files(folder):
    """Return the files of jobs and images that are in a data folder or store."""
    return sorted(path.name for part in ("jobs", "images") for path in (folder / part).rglob("*") if path.is_file())


def test_refused_job_fails_and_leaves_no_file(queue, settings):
    job = wait_finished(queue, queue.submit(request(model="refused"), image=IMAGE, last_image=LAST))
    assert (job.status, job.error, job.image, job.last_image) == ("failed", REFUSED, None, None)
    assert queue.image(job.id) is None
    wait_until(lambda: stored_files(settings.data_dir) == [])
    assert queue.preview(job.id) is None
    wait_until(lambda: queue._table.deletions() == [])
    queue.delete(job.id)


def test_generated_image_of_a_refused_job_is_deleted(queue, settings):
    job = wait_finished(queue, queue.submit(request(model="refused", prompt="a fox")))
    assert (job.error, job.image) == (REFUSED, None)
    wait_until(lambda: stored_files(settings.data_dir) == [])


def test_image_of_a_refused_job_is_kept_for_another_job(queue):
    other = wait_finished(queue, queue.submit(request(), image=IMAGE))
    wait_finished(queue, queue.submit(request(model="refused"), image=IMAGE))
    wait_until(lambda: queue._table.deletions() == [])
    assert queue.image(other.id).read_bytes() == IMAGE
    assert queue.result(other.id).exists()


def test_files_of_a_job_that_was_refused_before_a_crash_are_swept(settings):
    with Queue(settings) as queue:
        job = queue.submit(request(), image=IMAGE, last_image=LAST)
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
        job = wait_finished(queue, queue.submit(request(model="refused"), image=IMAGE, last_image=LAST))
        assert job.error == REFUSED
        wait_until(lambda: [path for path in store.rglob("*") if path.is_file() and job.id in str(path)] == [])
