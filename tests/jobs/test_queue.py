"""The queue's promises, on a real disk with real processes; those of its database also on a real PostgreSQL."""

import asyncio
import threading

import pytest
from queue_helpers import HELD, IMAGE, PATIENCE, begun, finished, let_go, request, until
from queue_work import drawn, expected

from kinema.errors import (
    InsufficientDisk,
    InvalidRequest,
    JobNotFound,
    JobUnfinished,
    KeyReused,
    QueueFull,
    QueueUnavailable,
)
from kinema.jobs import Queue
from kinema.jobs.scheduler import DAY
from kinema.settings import Settings


@pytest.fixture
def looking_on(settings):
    """A queue that runs nothing, so that what is submitted stays queued."""
    with Queue(settings) as queue:
        yield queue


@pytest.fixture
def unopened(settings):
    """A queue that runs jobs once it is opened, so that nothing of them is missed."""
    queue = Queue(settings, "queue_work:Work")
    yield queue
    queue.close(grace=0)


def test_a_still_becomes_a_video_by_steps_that_are_told(unopened):
    queue = unopened
    job = queue.submit(request(motion_bucket_id=30), image=IMAGE, title="Rocket")
    watching = queue.watch(job.id)
    seen = [next(watching)]
    queue.open()
    seen += watching
    assert [job.status for job in seen][0 :: len(seen) - 1] == ["queued", "completed"]
    assert {job.stage for job in seen} >= {"encode", "denoise", "decode"}
    percents = [job.progress for job in seen]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)
    done = seen[-1]
    assert (done.title, done.eta, done.error, done.queue_position) == ("Rocket", None, None, None)
    assert done.created_at <= done.started_at <= done.completed_at < done.expires_at
    assert done.stage_durations["denoise"] > 0
    assert queue.result(job.id).read_bytes() == expected(job.request, IMAGE)
    assert queue.image(job.id).read_bytes() == IMAGE


def test_a_sentence_becomes_a_still_that_is_kept_and_a_video(queue):
    asked = request(prompt="a red balloon")
    job = finished(queue, queue.submit(asked))
    assert job.title == "a red balloon"
    assert queue.image(job.id).read_bytes() == drawn(asked)
    assert queue.result(job.id).read_bytes() == expected(asked, drawn(asked))


def test_nothing_is_left_of_the_work_but_its_result(queue):
    job = finished(queue, queue.submit(request(prompt="a red balloon")))
    until(lambda: [path.name for path in queue.folder(job.id).iterdir()] == ["video.mp4"])


def test_the_same_still_is_kept_once(looking_on, settings):
    for seed in range(3):
        looking_on.submit(request(seed=seed), image=IMAGE)
    assert len(list((settings.data_dir / "images").iterdir())) == 1


def test_those_with_more_priority_go_first_and_everyone_knows_their_place(looking_on, settings, notes):
    ids = [looking_on.submit(request(seed=i), image=IMAGE, priority=p).id for i, p in enumerate((0, 0, 5, -5))]
    assert [looking_on.get(job_id).queue_position for job_id in ids] == [2, 3, 1, 4]
    with Queue(settings, "queue_work:Work") as queue:
        for job_id in ids:
            finished(queue, queue.get(job_id))
    order = [job_id for job_id, part, *_ in begun(notes) if part == "latents"]
    assert order == [ids[2], ids[0], ids[1], ids[3]]


def test_jobs_of_the_loaded_model_go_ahead_but_not_for_ever(looking_on, settings, notes):
    ids = [looking_on.submit(request(model=model, seed=i), image=IMAGE).id for i, model in enumerate("abaaaaa")]
    with Queue(settings, "queue_work:Work") as queue:
        for job_id in ids:
            finished(queue, queue.get(job_id))
    models = [model for _, part, model, _ in begun(notes) if part == "latents"]
    assert models == ["a", "a", "a", "a", "b", "a", "a"]


def test_a_full_queue_refuses_and_tells_how_long_to_wait(tmp_path):
    with Queue(Settings(data_dir=tmp_path, queue_size=2, min_free_gb=0)) as queue:
        for seed in range(2):
            queue.submit(request(seed=seed), image=IMAGE)
        with pytest.raises(QueueFull, match=r"2 jobs are waiting.*try again in") as full:
            queue.submit(request(), image=b"another still")
        assert full.value.retry_after >= 1
        assert len(list((tmp_path / "images").iterdir())) == 1


def test_no_job_is_accepted_where_the_disk_has_less_than_its_reserve(tmp_path):
    with (
        Queue(Settings(data_dir=tmp_path, min_free_gb=1e9)) as queue,
        pytest.raises(InsufficientDisk, match=r"GB are free.*KINEMA_MIN_FREE_GB"),
    ):
        queue.submit(request(), image=IMAGE)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "neither a still nor a prompt"),
        ({"image": IMAGE, "request": request(prompt="a fox")}, "a still and a prompt are both given"),
        ({"image": IMAGE, "priority": 1001}, "priority 1001 is out of range"),
        ({"image": IMAGE, "idempotency_key": ""}, "1 to 255 characters"),
    ],
)
def test_what_can_not_be_a_job_is_refused(looking_on, given, words):
    with pytest.raises(InvalidRequest, match=words):
        looking_on.submit(**{"request": request(), **given})


def test_the_same_key_gives_the_same_job_and_never_another_request(looking_on):
    first = looking_on.submit(request(), image=IMAGE, idempotency_key="k")
    assert looking_on.submit(request(), image=IMAGE, idempotency_key="k").id == first.id
    with pytest.raises(KeyReused, match="'k' came before with another request"):
        looking_on.submit(request(seed=8), image=IMAGE, idempotency_key="k")
    assert looking_on.waiting() == 1


def test_a_key_that_comes_from_many_at_once_gives_one_job(looking_on):
    ids = []
    threads = [
        threading.Thread(target=lambda: ids.append(looking_on.submit(request(), image=IMAGE, idempotency_key="k").id))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1


def test_a_list_comes_in_pages_in_both_orders(looking_on):
    ids = [looking_on.submit(request(seed=i), image=IMAGE).id for i in range(5)]
    page = looking_on.list(limit=2)
    assert ([job.id for job in page.jobs], page.has_more) == ([ids[4], ids[3]], True)
    page = looking_on.list(limit=2, after=ids[3])
    assert ([job.id for job in page.jobs], page.has_more) == ([ids[2], ids[1]], True)
    page = looking_on.list(limit=2, after=ids[1])
    assert ([job.id for job in page.jobs], page.has_more) == ([ids[0]], False)
    assert [job.id for job in looking_on.list(newest_first=False).jobs] == ids
    with pytest.raises(JobNotFound, match="'video_x'"):
        looking_on.list(after="video_x")
    with pytest.raises(InvalidRequest, match="limit 0"):
        looking_on.list(limit=0)


def test_a_queued_job_is_cancelled_at_once_and_never_begins(queue, notes):
    running = queue.submit(request(**HELD), image=IMAGE)
    waiting = queue.submit(request(), image=IMAGE)
    cancelled = queue.cancel(waiting.id)
    assert (cancelled.status, cancelled.error.code) == ("failed", "cancelled")
    queue.cancel(running.id)
    finished(queue, queue.submit(request(), image=IMAGE))
    assert waiting.id not in {job_id for job_id, *_ in begun(notes)}


def test_a_running_job_is_cancelled_within_a_step_and_its_worker_does_the_next(queue, notes, monkeypatch):
    monkeypatch.setattr("kinema.jobs.worker_pool.CANCEL_SECONDS", PATIENCE)
    job = queue.submit(request(**HELD), image=IMAGE)
    until(lambda: queue.get(job.id).step > 2)
    assert queue.cancel(job.id).error.code == "cancelled"
    finished(queue, queue.submit(request(), image=IMAGE))
    assert len({pid for *_, pid in begun(notes)}) == 1  # it still has its model
    with pytest.raises(JobUnfinished, match="cancelled"):
        queue.result(job.id)


def test_a_cancel_in_an_endless_step_frees_the_worker_and_is_logged_as_that(queue, caplog):
    caplog.set_level("INFO", "kinema")
    job = queue.submit(request(model="hangs"), image=IMAGE)
    until(lambda: queue.get(job.id).stage == "encode" and queue.get(job.id).step == 2)
    queue.cancel(job.id)
    assert finished(queue, queue.submit(request(), image=IMAGE)).status == "completed"
    (ended,) = [record for record in caplog.records if record.msg.startswith("worker ")]
    assert (ended.levelname, "its job was cancelled" in ended.getMessage()) == ("INFO", True)
    assert "memory" not in caplog.text


def test_a_finished_job_stays_as_it_is_when_it_is_cancelled(queue):
    job = finished(queue, queue.submit(request(), image=IMAGE))
    assert queue.cancel(job.id).status == "completed"


def test_deleting_leaves_nothing(queue, settings):
    job = finished(queue, queue.submit(request(), image=IMAGE))
    queue.delete(job.id)
    folders = [settings.data_dir / name for name in ("images", "jobs")]
    until(lambda: not any(list(folder.iterdir()) for folder in folders))
    for act in (queue.get, queue.cancel, queue.delete, queue.result, queue.image, queue.preview, queue.pin):
        with pytest.raises(JobNotFound, match=job.id):
            act(job.id)


def test_deleting_a_running_job_ends_its_work_and_leaves_nothing(queue, settings):
    job = queue.submit(request(**HELD), image=IMAGE)
    until(lambda: queue.get(job.id).step > 2)
    queue.delete(job.id)
    until(lambda: not list((settings.data_dir / "jobs").iterdir()))
    assert finished(queue, queue.submit(request(), image=IMAGE)).status == "completed"


def test_a_still_that_another_job_needs_stays(queue):
    jobs = [finished(queue, queue.submit(request(seed=seed), image=IMAGE)) for seed in range(2)]
    queue.delete(jobs[0].id)
    assert queue.image(jobs[1].id).read_bytes() == IMAGE


def test_results_expire_and_pinned_ones_stay(tmp_path, notes, monkeypatch, clock):
    monkeypatch.setattr("kinema.jobs.scheduler.HOUSEKEEPING_SECONDS", 0.1)
    with Queue(Settings(data_dir=tmp_path, keep_days=1, min_free_gb=0), "queue_work:Work") as queue:
        kept = finished(queue, queue.submit(request(seed=1), image=b"one still", pinned=True))
        goes = finished(queue, queue.submit(request(seed=2), image=b"other still"))
        clock.now += 2 * DAY
        until(lambda: goes.id not in {job.id for job in queue.list().jobs})
        until(lambda: len(list((tmp_path / "images").iterdir())) == 1)
        assert queue.get(kept.id).expires_at is None
        assert queue.result(kept.id).exists()
        assert queue.image(kept.id).read_bytes() == b"one still"
        assert queue.pin(kept.id, pinned=False).expires_at == clock.now + DAY
        clock.now += 2 * DAY
        until(lambda: not queue.list().jobs)


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [("memory", "insufficient_memory", "64 GB are needed"), ("defect", "internal_error", "RuntimeError: a bug")],
)
def test_what_the_work_can_not_do_fails_with_its_reason_and_the_next_job_goes_on(queue, model, code, words):
    job = finished(queue, queue.submit(request(model=model), image=IMAGE))
    assert (job.status, job.error.code, job.attempts) == ("failed", code, 0)
    assert words in job.error.message
    assert finished(queue, queue.submit(request(), image=IMAGE)).status == "completed"


def test_previews_come_now_and_then_and_go_with_the_work(queue, monkeypatch):
    job = queue.submit(request(**HELD), image=IMAGE)
    until(lambda: queue.get(job.id).previews)
    assert queue.preview(job.id) == b"a picture"
    queue.cancel(job.id)
    assert queue.preview(job.id) is None


def test_what_a_job_will_take_is_known_from_the_jobs_before(queue):
    asked = request()
    assert queue.estimate(asked) is None
    done = finished(queue, queue.submit(asked, image=IMAGE))
    spent = sum(done.stage_durations.values())
    assert queue.estimate(asked) == pytest.approx(spent)
    assert queue.estimate(asked.changed(num_inference_steps=10)) == pytest.approx(
        spent + done.stage_durations["denoise"]
    )


def test_watching_in_an_event_loop_tells_the_same(unopened):
    queue = unopened
    job = queue.submit(request(motion_bucket_id=30), image=IMAGE)

    async def watch():
        watching = queue.watch_async(job.id)
        seen = [await anext(watching)]
        watched.release()
        return seen + [job async for job in watching]

    async def many():
        watching = asyncio.gather(*(watch() for _ in range(20)))
        for _ in range(20):
            await watched.acquire()
        queue.open()
        return [[(job.status, job.progress) for job in seen] for seen in await watching]

    watched = asyncio.Semaphore(0)
    told = asyncio.run(asyncio.wait_for(many(), PATIENCE))
    assert {seen[-1] for seen in told} == {("completed", 100)}
    assert all(len(seen) > 3 for seen in told)


def test_a_watched_job_tells_its_place_as_it_changes(queue):
    first = queue.submit(request(**HELD), image=IMAGE)
    until(lambda: queue.get(first.id).status == "in_progress")
    second, third = (queue.submit(request(seed=seed, **HELD), image=IMAGE) for seed in (1, 2))
    places = []
    for job in queue.watch(third.id):
        places.append(job.queue_position)
        if job.queue_position == 2:
            queue.cancel(second.id)
        if job.queue_position == 1:
            queue.cancel(first.id)
        if job.queue_position is None:
            break
    assert [place for i, place in enumerate(places) if place != ([0, *places])[i]] == [2, 1, None]


def test_another_process_may_do_all_but_run_the_jobs(queue, settings):
    with Queue(settings) as other:
        job = other.submit(request(motion_bucket_id=30), image=IMAGE)
        assert [now.status for now in other.watch(job.id)][-1] == "completed"
        assert other.result(job.id).read_bytes() == expected(job.request, IMAGE)
        slow = other.submit(request(**HELD), image=IMAGE)
        until(lambda: other.get(slow.id).status == "in_progress")
        other.cancel(slow.id)
        assert finished(queue, queue.submit(request(), image=IMAGE)).status == "completed"


def test_a_folder_that_can_not_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(QueueUnavailable, match=r"file/data can't be used.*KINEMA_DATA_DIR"):
        Queue(Settings(data_dir=tmp_path / "file" / "data"))


@pytest.mark.parametrize("url", ["mysql://me:secret@db/x", "postgresql://me:secret@127.0.0.1:1/x", "nonsense"])
def test_a_database_that_can_not_be_had_is_told_without_its_password(tmp_path, url):
    with pytest.raises(QueueUnavailable, match="KINEMA_DATABASE_URL") as fault:
        Queue(Settings(data_dir=tmp_path, database_url=url))
    assert "secret" not in str(fault.value)


def test_a_closing_queue_takes_no_more(settings):
    queue = Queue(settings)
    queue.close()
    with pytest.raises(QueueUnavailable, match="closing"):
        queue.submit(request(), image=IMAGE)


def told_of(job, caplog):
    """What the log says of a job, without its id."""
    return [text.removeprefix(f"job {job.id} ") for text in caplog.messages if job.id in text]


def test_the_log_has_one_line_for_each_event_of_a_job(queue, caplog):
    caplog.set_level("INFO", "kinema")
    running, waiting, unwanted = (queue.submit(request(seed=seed, **HELD), image=IMAGE) for seed in range(3))
    until(lambda: told_of(running, caplog) == ["begins"])
    for job in (waiting, running, waiting):
        queue.cancel(job.id)
    queue.delete(unwanted.id)
    failing = finished(queue, queue.submit(request(model="memory"), image=IMAGE))
    until(lambda: not queue.running())
    assert told_of(running, caplog) == ["begins", "is cancelled"]
    assert told_of(waiting, caplog) == ["is cancelled"]
    assert told_of(unwanted, caplog) == ["is deleted"]
    assert [text.partition(":")[0] for text in told_of(failing, caplog)] == ["begins", "failed"]


def test_a_job_that_was_cancelled_elsewhere_before_it_failed_is_told_and_counted_as_cancelled(settings, notes, caplog):
    caplog.set_level("INFO", "kinema")
    ended = []
    with Queue(settings, "queue_work:Work", ended=ended.append) as queue, Queue(settings) as other:
        job = queue.submit(request(model="held memory"), image=IMAGE)
        until(lambda: told_of(job, caplog) == ["begins"])
        other.cancel(job.id)
        let_go(notes)
        until(lambda: ended)
    assert [job.error.code for job in ended] == ["cancelled"]
    assert told_of(job, caplog) == ["begins", "is cancelled"]
