"""The queue's promises that its database keeps, on SQLite and on a real PostgreSQL."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from queue_helpers import HELD, IMAGE, PATIENCE, Server, begun, finished, let_go, request, until
from queue_work import drawn, expected

from kinema.errors import InvalidRequest, JobNotFound, KeyReused, QueueFull
from kinema.jobs import Queue
from kinema.jobs.scheduler import DAY
from kinema.settings import Settings


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request, tmp_path, notes):
    url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    return Settings(data_dir=tmp_path / "data", database_url=url, queue_size=8, min_free_gb=0)


@pytest.fixture
def looking_on(settings):
    with Queue(settings) as queue:
        yield queue


def test_a_job_is_done(queue):
    job = finished(queue, queue.submit(request(prompt="a fox"), idempotency_key="k"))
    assert queue.result(job.id).read_bytes() == expected(job.request, drawn(job.request))
    assert queue.submit(request(prompt="a fox"), idempotency_key="k") == queue.get(job.id)
    with pytest.raises(KeyReused):
        queue.submit(request(prompt="a hare"), idempotency_key="k")


def test_a_crash_costs_nothing_that_was_done(settings, looking_on, notes):
    job = looking_on.submit(request(**HELD, prompt="a fox"))
    server = Server(settings)
    try:
        until(lambda: looking_on.get(job.id).stage == "denoise")
        server.kill()
        let_go(notes)
        server.start()
        job = finished(looking_on, job)
    finally:
        server.kill()
    assert looking_on.result(job.id).read_bytes() == expected(job.request, drawn(job.request))
    assert [part for _, part, *_ in begun(notes)] == ["image", "latents", "latents", "video"]


def test_order_places_and_pages(looking_on):
    ids = [looking_on.submit(request(seed=i), image=IMAGE, priority=p).id for i, p in enumerate((0, 0, 5))]
    assert [looking_on.get(job_id).queue_position for job_id in ids] == [2, 3, 1]
    looking_on.cancel(ids[0])
    assert [looking_on.get(job_id).queue_position for job_id in ids] == [None, 2, 1]
    page = looking_on.list(after=ids[2], limit=1)
    assert ([job.id for job in page.jobs], page.has_more) == ([ids[1]], True)
    looking_on.delete(ids[1])
    with pytest.raises(JobNotFound):
        looking_on.get(ids[1])


@pytest.mark.parametrize(("priority", "minutes"), [(5, 5), (1000, 1000), (-5, -5)])
def test_a_job_goes_ahead_only_of_those_that_came_a_minute_before_it_for_each_step_of_priority(
    looking_on, monkeypatch, priority, minutes
):
    now = 1_800_000_000.0
    monkeypatch.setattr("kinema.jobs.queue.time", SimpleNamespace(time=lambda: now))
    waiting = looking_on.submit(request(seed=0), image=IMAGE)
    now += 60 * minutes - 1
    ahead = looking_on.submit(request(seed=1), image=IMAGE, priority=priority)
    now += 2
    behind = looking_on.submit(request(seed=2), image=IMAGE, priority=priority)
    assert (waiting.queue_position, ahead.queue_position, behind.queue_position) == (1, 1, 3)
    assert [looking_on.get(job.id).queue_position for job in (waiting, ahead, behind)] == [2, 1, 3]
    claimed = [looking_on._store.claim([None])[0] for _ in range(3)]
    assert claimed == [ahead.id, waiting.id, behind.id]


def test_a_deletion_is_noted_until_its_files_are_gone(looking_on):
    looking_on.check_database()
    job = looking_on.submit(request(), image=IMAGE)
    looking_on.delete(job.id)
    assert looking_on._store.deletions() == [(job.id, job.image)]
    looking_on._store.forget_deletions([job.id])
    assert looking_on._store.deletions() == []
    looking_on.check_database()


def test_many_at_once_never_overfill_it(looking_on):
    refused = []

    def submit(seed):
        try:
            looking_on.submit(request(seed=seed), image=IMAGE)
        except QueueFull as full:
            refused.append(full)

    threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (looking_on.waiting(), len(refused)) == (8, 12)


def test_of_jobs_that_are_written_together_a_bad_one_takes_no_other_along(looking_on):
    store = looking_on._store
    # What the queue itself would never let through: SQLite keeps any number, PostgreSQL any text of Python's.
    bad = {"title": "\ud800"} if store._sqlite else {"priority": 2**40}
    told = {}

    def add(name, **changes):
        asked = {"id": name, "model": "a", "request": request().model_dump_json(), "priority": 0, "created_at": 0.0}
        try:
            told[name] = store.add(asked | changes, 8)
        except InvalidRequest as error:
            told[name] = error

    threads = [threading.Thread(target=add, args=(name,), kwargs=bad if name == "b" else {}) for name in "abc"]
    with store._adding:  # so that all three wait for the same turn
        for count, thread in enumerate(threads, 1):
            thread.start()
            until(lambda count=count: len(store._additions) == count)
    for thread in threads:
        thread.join()
    assert (told["a"], told["c"]) == (1, 2)
    assert "can't keep this request" in str(told["b"])
    assert {job.id for job in looking_on.list().jobs} == {"a", "c"}


def test_a_second_server_of_the_database_runs_nothing_while_the_first_one_lives(queue, settings, tmp_path):
    until(lambda: queue.ready)
    elsewhere = settings.model_copy(update={"data_dir": tmp_path / "data"})
    server = Server(elsewhere)
    try:
        finished(queue, queue.submit(request(), image=IMAGE))
        assert server.workers() == []
    finally:
        server.kill()


@pytest.mark.parametrize("act", ["cancel", "delete"])
@pytest.mark.parametrize("watcher", ["the one that runs jobs", "the other"])
def test_who_watches_a_queued_job_soon_hears_what_another_process_does_to_it(queue, looking_on, watcher, act):
    here, there = (queue, looking_on) if watcher == "the one that runs jobs" else (looking_on, queue)
    running = queue.submit(request(**HELD), image=IMAGE)
    until(lambda: queue.get(running.id).status == "in_progress")
    job = queue.submit(request(seed=8), image=IMAGE)

    async def watch():
        watching = here.watch_async(job.id)
        told = [(await anext(watching)).status]
        await asyncio.to_thread(getattr(there, act), job.id)
        async with asyncio.timeout(PATIENCE):
            return told + [now.status async for now in watching]

    told = asyncio.run(watch())
    assert told[-1] == ("failed" if act == "cancel" else "queued")


def test_who_watches_from_another_process_hears_of_begin_and_end(queue, looking_on, notes):
    job = looking_on.submit(request(**HELD), image=IMAGE)
    told = []
    for now in looking_on.watch(job.id):
        told.append(now.status)
        if now.status == "in_progress":
            let_go(notes)
    assert list(dict.fromkeys(told))[-2:] == ["in_progress", "completed"]


def test_a_pinned_job_does_not_expire_and_an_unpinned_one_does_some_days_later(settings, monkeypatch, clock):
    monkeypatch.setattr("kinema.jobs.scheduler.HOUSEKEEPING_SECONDS", 0.1)
    with Queue(settings.model_copy(update={"keep_days": 2}), "queue_work:Work") as queue:
        job = finished(queue, queue.submit(request(), image=IMAGE))
        assert job.expires_at == clock.now + 2 * DAY
        assert (queue.pin(job.id).pinned, queue.pin(job.id).expires_at) == (True, None)
        clock.now += 3 * DAY
        assert queue._store.expired() == []
        unpinned = queue.pin(job.id, pinned=False)
        assert (unpinned.pinned, unpinned.expires_at) == (False, clock.now + 2 * DAY)
        clock.now += 3 * DAY
        until(lambda: not queue.list().jobs)


def test_a_job_that_is_pinned_as_it_expires_stays(settings):
    with Queue(settings.model_copy(update={"keep_days": 1e-9})) as queue:
        job = queue.cancel(queue.submit(request(), image=IMAGE).id)
        until(lambda: queue._store.expired() == [job.id])
        queue.pin(job.id)
        assert not queue._store.remove(job.id, only_expired=True)
        assert queue.get(job.id).pinned


def test_a_jobs_title_and_pin_may_change_while_it_runs(queue, looking_on):
    job = queue.submit(request(**HELD), image=IMAGE, title="one")
    told = queue.watch(job.id)
    next(now for now in told if now.stage == "denoise")
    assert (queue.rename(job.id, "other").title, queue.pin(job.id).pinned) == ("other", True)
    later = [next(told) for _ in range(5)][-1]
    assert (later.stage, later.title, later.pinned) == ("denoise", "other", True)
    assert (looking_on.get(job.id).title, looking_on.cancel(job.id).expires_at) == ("other", None)
    for change in (looking_on.pin, lambda job_id: looking_on.rename(job_id, "x")):
        with pytest.raises(JobNotFound):
            change("video_" + "0" * 32)
