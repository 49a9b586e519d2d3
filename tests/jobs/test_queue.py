"""Guarantees of the queue, with real files and worker processes. Those of its database: test_databases.py."""

import asyncio
import threading

import pytest
from queue_helpers import BLOCKED, IMAGE, TIMEOUT, release_jobs, request, started_tasks, wait_finished, wait_until
from queue_work import expected_image, expected_video

from kinema.errors import (
    IdempotencyKeyReused,
    InsufficientDisk,
    InvalidRequest,
    JobNotFound,
    JobUnfinished,
    QueueFull,
    QueueUnavailable,
)
from kinema.jobs import NewJob, Queue
from kinema.jobs.deletion import DAY
from kinema.settings import Settings


@pytest.fixture
def observer(settings):
    """A queue that runs no jobs, so that they stay queued."""
    with Queue(settings) as queue:
        yield queue


@pytest.fixture
def unopened(settings):
    """A queue that a test opens itself, so that it receives every change of a job."""
    queue = Queue(settings, "queue_work:Work")
    yield queue
    queue.close(grace=0)


def test_image_job_completes_and_publishes_steps(unopened):
    queue = unopened
    job = queue.submit(NewJob(request(motion_bucket_id=30), image=IMAGE, title="Rocket"))
    changes = queue.subscribe(job.id)
    states = [next(changes)]
    queue.open()
    states += changes
    assert [job.status for job in states][0 :: len(states) - 1] == ["queued", "completed"]
    assert {job.stage for job in states} >= {"encode", "denoise", "decode"}
    percents = [job.progress for job in states]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)
    done = states[-1]
    assert (done.title, done.eta, done.error, done.queue_position) == ("Rocket", None, None, None)
    assert done.created_at <= done.started_at <= done.completed_at < done.expires_at
    assert done.stage_durations["denoise"] > 0
    assert queue.result(job.id).read_bytes() == expected_video(job.request, IMAGE)
    assert queue.image(job.id).read_bytes() == IMAGE


def test_prompt_job_stores_generated_image_and_video(queue):
    video_request = request(prompt="a red balloon")
    job = wait_finished(queue, queue.submit(NewJob(video_request)))
    assert job.title == "a red balloon"
    assert queue.image(job.id).read_bytes() == expected_image(video_request)
    assert queue.result(job.id).read_bytes() == expected_video(video_request, expected_image(video_request))


def test_completed_job_keeps_only_its_video(queue):
    job = wait_finished(queue, queue.submit(NewJob(request(prompt="a red balloon"))))
    wait_until(lambda: [path.name for path in queue.folder(job.id).iterdir()] == ["video.mp4"])


def test_same_image_is_stored_once(observer, settings):
    for seed in range(3):
        observer.submit(NewJob(request(seed=seed), image=IMAGE))
    assert len(list((settings.data_dir / "images").iterdir())) == 1


def test_jobs_run_in_order_of_priority(observer, settings, task_log):
    ids = [observer.submit(NewJob(request(seed=i), image=IMAGE, priority=p)).id for i, p in enumerate((0, 0, 5, -5))]
    assert [observer.get(job_id).queue_position for job_id in ids] == [2, 3, 1, 4]
    with Queue(settings, "queue_work:Work") as queue:
        for job_id in ids:
            wait_finished(queue, queue.get(job_id))
    order = [job_id for job_id, part, *_ in started_tasks(task_log) if part == "latents"]
    assert order == [ids[2], ids[0], ids[1], ids[3]]


def test_jobs_of_loaded_model_overtake_three_times_at_most(observer, settings, task_log):
    ids = [observer.submit(NewJob(request(model=model, seed=i), image=IMAGE)).id for i, model in enumerate("abaaaaa")]
    with Queue(settings, "queue_work:Work") as queue:
        for job_id in ids:
            wait_finished(queue, queue.get(job_id))
    models = [model for _, part, model, _ in started_tasks(task_log) if part == "latents"]
    assert models == ["a", "a", "a", "a", "b", "a", "a"]


def test_full_queue_raises_queue_full_with_retry_after(tmp_path):
    with Queue(Settings(data_dir=tmp_path, queue_size=2, min_free_gb=0)) as queue:
        for seed in range(2):
            queue.submit(NewJob(request(seed=seed), image=IMAGE))
        with pytest.raises(QueueFull, match=r"2 jobs are waiting.*try again in") as full:
            queue.submit(NewJob(request(), image=b"another image"))
        assert full.value.retry_after >= 1
        assert len(list((tmp_path / "images").iterdir())) == 1


def test_submit_fails_below_free_space_reserve(tmp_path):
    with (
        Queue(Settings(data_dir=tmp_path, min_free_gb=1e9)) as queue,
        pytest.raises(InsufficientDisk, match=r"GB is free.*KINEMA_MIN_FREE_GB"),
    ):
        queue.submit(NewJob(request(), image=IMAGE))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither an image nor a prompt"),
        ({"image": IMAGE, "request": request(prompt="a fox")}, "both an image and a prompt are given"),
        ({"image": IMAGE, "priority": 1001}, "priority 1001 is out of range"),
        ({"image": IMAGE, "idempotency_key": ""}, "has 0 characters; expected 1 to 255"),
    ],
)
def test_submit_of_invalid_job_raises_invalid_request(observer, arguments, message):
    with pytest.raises(InvalidRequest, match=message):
        observer.submit(NewJob(**{"request": request(), **arguments}))


def test_same_key_returns_same_job_and_rejects_another_request(observer):
    first = observer.submit(NewJob(request(), image=IMAGE, idempotency_key="k"))
    assert observer.submit(NewJob(request(), image=IMAGE, idempotency_key="k")).id == first.id
    with pytest.raises(IdempotencyKeyReused, match="'k' was used with another request"):
        observer.submit(NewJob(request(seed=8), image=IMAGE, idempotency_key="k"))
    assert observer.waiting() == 1


def test_concurrent_submits_with_one_key_create_one_job(observer):
    ids = []
    threads = [
        threading.Thread(
            target=lambda: ids.append(observer.submit(NewJob(request(), image=IMAGE, idempotency_key="k")).id)
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1


def test_list_pages_in_both_orders(observer):
    ids = [observer.submit(NewJob(request(seed=i), image=IMAGE)).id for i in range(5)]
    page = observer.list(limit=2)
    assert ([job.id for job in page.jobs], page.has_more) == ([ids[4], ids[3]], True)
    page = observer.list(limit=2, after=ids[3])
    assert ([job.id for job in page.jobs], page.has_more) == ([ids[2], ids[1]], True)
    page = observer.list(limit=2, after=ids[1])
    assert ([job.id for job in page.jobs], page.has_more) == ([ids[0]], False)
    assert [job.id for job in observer.list(newest_first=False).jobs] == ids
    with pytest.raises(JobNotFound, match="'video_x'"):
        observer.list(after="video_x")
    with pytest.raises(InvalidRequest, match="limit 0"):
        observer.list(limit=0)


def test_cancelled_queued_job_never_starts(queue, task_log):
    running = queue.submit(NewJob(request(**BLOCKED), image=IMAGE))
    waiting = queue.submit(NewJob(request(), image=IMAGE))
    cancelled = queue.cancel(waiting.id)
    assert (cancelled.status, cancelled.error.code) == ("failed", "cancelled")
    queue.cancel(running.id)
    wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
    assert waiting.id not in {job_id for job_id, *_ in started_tasks(task_log)}


def test_cancel_stops_running_job_within_a_step_and_keeps_worker(queue, task_log, monkeypatch):
    monkeypatch.setattr("kinema.jobs.worker_run.CANCEL_SECONDS", TIMEOUT)
    job = queue.submit(NewJob(request(**BLOCKED), image=IMAGE))
    wait_until(lambda: queue.get(job.id).step > 2)
    assert queue.cancel(job.id).error.code == "cancelled"
    wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
    assert len({pid for *_, pid in started_tasks(task_log)}) == 1  # the same process, with its model loaded
    with pytest.raises(JobUnfinished, match="cancelled"):
        queue.result(job.id)


def test_cancel_during_endless_step_kills_worker_and_logs_the_cancel(queue, caplog):
    caplog.set_level("INFO", "kinema")
    job = queue.submit(NewJob(request(model="hangs"), image=IMAGE))
    wait_until(lambda: queue.get(job.id).stage == "encode" and queue.get(job.id).step == 2)
    queue.cancel(job.id)
    assert wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE))).status == "completed"
    (ended,) = [record for record in caplog.records if record.msg.startswith("worker %s on %s ended")]
    assert (ended.levelname, "its job was cancelled" in ended.getMessage()) == ("INFO", True)
    assert "memory" not in caplog.text


def test_cancel_does_not_change_finished_job(queue):
    job = wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
    assert queue.cancel(job.id).status == "completed"


def test_delete_removes_job_and_files(queue, settings):
    job = wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
    queue.delete(job.id)
    folders = [settings.data_dir / name for name in ("images", "jobs")]
    wait_until(lambda: not any(list(folder.iterdir()) for folder in folders))
    for act in (queue.get, queue.cancel, queue.delete, queue.result, queue.image, queue.preview, queue.pin):
        with pytest.raises(JobNotFound, match=job.id):
            act(job.id)


def test_delete_of_running_job_stops_work_and_removes_files(queue, settings):
    job = queue.submit(NewJob(request(**BLOCKED), image=IMAGE))
    wait_until(lambda: queue.get(job.id).step > 2)
    queue.delete(job.id)
    wait_until(lambda: not list((settings.data_dir / "jobs").iterdir()))
    assert wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE))).status == "completed"


def test_delete_keeps_image_that_another_job_needs(queue):
    jobs = [wait_finished(queue, queue.submit(NewJob(request(seed=seed), image=IMAGE))) for seed in range(2)]
    queue.delete(jobs[0].id)
    assert queue.image(jobs[1].id).read_bytes() == IMAGE


def test_jobs_expire_unless_pinned(tmp_path, task_log, monkeypatch, clock):
    monkeypatch.setattr("kinema.jobs.scheduler.HOUSEKEEPING_SECONDS", 0.1)
    with Queue(Settings(data_dir=tmp_path, keep_days=1, min_free_gb=0), "queue_work:Work") as queue:
        pinned = wait_finished(queue, queue.submit(NewJob(request(seed=1), image=b"one image", pinned=True)))
        expiring = wait_finished(queue, queue.submit(NewJob(request(seed=2), image=b"other image")))
        clock.now += 2 * DAY
        wait_until(lambda: expiring.id not in {job.id for job in queue.list().jobs})
        wait_until(lambda: len(list((tmp_path / "images").iterdir())) == 1)
        assert queue.get(pinned.id).expires_at is None
        assert queue.result(pinned.id).exists()
        assert queue.image(pinned.id).read_bytes() == b"one image"
        assert queue.pin(pinned.id, pinned=False).expires_at == clock.now + DAY
        clock.now += 2 * DAY
        wait_until(lambda: not queue.list().jobs)


@pytest.mark.parametrize(
    ("model", "code", "message"),
    [("memory", "insufficient_memory", "64 GB are needed"), ("defect", "internal_error", "RuntimeError: a bug")],
)
def test_error_of_work_fails_job_with_message_and_next_job_completes(queue, model, code, message):
    job = wait_finished(queue, queue.submit(NewJob(request(model=model), image=IMAGE)))
    assert (job.status, job.error.code, job.attempts) == ("failed", code, 0)
    assert message in job.error.message
    assert wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE))).status == "completed"


def test_preview_is_available_until_job_ends(queue, monkeypatch):
    job = queue.submit(NewJob(request(**BLOCKED), image=IMAGE))
    wait_until(lambda: queue.get(job.id).previews)
    assert queue.preview(job.id) == b"a picture"
    queue.cancel(job.id)
    assert queue.preview(job.id) is None


def test_estimate_follows_completed_jobs(queue):
    video_request = request()
    assert queue.estimate(video_request) is None
    done = wait_finished(queue, queue.submit(NewJob(video_request, image=IMAGE)))
    spent = sum(done.stage_durations.values())
    assert queue.estimate(video_request) == pytest.approx(spent)
    assert queue.estimate(video_request.changed(num_inference_steps=10)) == pytest.approx(
        spent + done.stage_durations["denoise"]
    )


def test_subscribe_async_yields_every_subscriber_all_states(unopened):
    queue = unopened
    job = queue.submit(NewJob(request(motion_bucket_id=30), image=IMAGE))

    async def subscribe():
        changes = queue.subscribe_async(job.id)
        states = [await anext(changes)]
        subscribed.release()
        return states + [job async for job in changes]

    async def subscribe_many():
        subscribers = asyncio.gather(*(subscribe() for _ in range(20)))
        for _ in range(20):
            await subscribed.acquire()
        queue.open()
        return [[(job.status, job.progress) for job in states] for states in await subscribers]

    subscribed = asyncio.Semaphore(0)
    results = asyncio.run(asyncio.wait_for(subscribe_many(), TIMEOUT))
    assert {states[-1] for states in results} == {("completed", 100)}
    assert all(len(states) > 3 for states in results)


def test_subscriber_gets_new_queue_positions(queue):
    first = queue.submit(NewJob(request(**BLOCKED), image=IMAGE))
    wait_until(lambda: queue.get(first.id).status == "in_progress")
    second, third = (queue.submit(NewJob(request(seed=seed, **BLOCKED), image=IMAGE)) for seed in (1, 2))
    positions = []
    for job in queue.subscribe(third.id):
        positions.append(job.queue_position)
        if job.queue_position == 2:
            queue.cancel(second.id)
        if job.queue_position == 1:
            queue.cancel(first.id)
        if job.queue_position is None:
            break
    assert [position for i, position in enumerate(positions) if position != ([0, *positions])[i]] == [2, 1, None]


def test_other_process_can_submit_subscribe_and_cancel(queue, settings):
    with Queue(settings) as other:
        job = other.submit(NewJob(request(motion_bucket_id=30), image=IMAGE))
        assert [now.status for now in other.subscribe(job.id)][-1] == "completed"
        assert other.result(job.id).read_bytes() == expected_video(job.request, IMAGE)
        slow = other.submit(NewJob(request(**BLOCKED), image=IMAGE))
        wait_until(lambda: other.get(slow.id).status == "in_progress")
        other.cancel(slow.id)
        assert wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE))).status == "completed"


def test_unusable_data_folder_is_named_in_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(QueueUnavailable, match=r"file/data can't be used.*KINEMA_DATA_DIR"):
        Queue(Settings(data_dir=tmp_path / "file" / "data"))


@pytest.mark.parametrize("url", ["mysql://me:secret@db/x", "postgresql://me:secret@127.0.0.1:1/x", "nonsense"])
def test_error_of_unavailable_database_hides_password(tmp_path, url):
    with pytest.raises(QueueUnavailable, match="KINEMA_DATABASE_URL") as error:
        Queue(Settings(data_dir=tmp_path, database_url=url))
    assert "secret" not in str(error.value)


def test_submit_to_closed_queue_fails(settings):
    queue = Queue(settings)
    queue.close()
    with pytest.raises(QueueUnavailable, match="closing"):
        queue.submit(NewJob(request(), image=IMAGE))


def log_lines(job, caplog):
    """Return the log messages of a job, without its id."""
    return [text.removeprefix(f"job {job.id} ") for text in caplog.messages if job.id in text]


def test_log_has_one_line_per_event_of_a_job(queue, caplog):
    caplog.set_level("INFO", "kinema")
    running, waiting, deleted = (queue.submit(NewJob(request(seed=seed, **BLOCKED), image=IMAGE)) for seed in range(3))
    wait_until(lambda: log_lines(running, caplog) == ["started"])
    for job in (waiting, running, waiting):
        queue.cancel(job.id)
    queue.delete(deleted.id)
    failing = wait_finished(queue, queue.submit(NewJob(request(model="memory"), image=IMAGE)))
    wait_until(lambda: not queue.running())
    assert log_lines(running, caplog) == ["started", "was cancelled"]
    assert log_lines(waiting, caplog) == ["was cancelled"]
    assert log_lines(deleted, caplog) == ["was deleted"]
    assert [text.partition(":")[0] for text in log_lines(failing, caplog)] == ["started", "failed"]


def test_job_cancelled_by_another_process_counts_as_cancelled_not_failed(settings, task_log, caplog):
    caplog.set_level("INFO", "kinema")
    finished_jobs = []
    with Queue(settings, "queue_work:Work", on_finished=finished_jobs.append) as queue, Queue(settings) as other:
        job = queue.submit(NewJob(request(model="blocked memory"), image=IMAGE))
        wait_until(lambda: log_lines(job, caplog) == ["started"])
        other.cancel(job.id)
        release_jobs(task_log)
        wait_until(lambda: finished_jobs)
    assert [job.error.code for job in finished_jobs] == ["cancelled"]
    assert log_lines(job, caplog) == ["started", "was cancelled"]
