"""Guarantees of the queue that depend on its database, with SQLite and with PostgreSQL."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
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

from kinema.cli.service_checks import check_services
from kinema.errors import IdempotencyKeyReused, InvalidRequest, JobNotFound, QueueFull
from kinema.jobs import NewJob, Queue
from kinema.jobs.deletion import DAY
from kinema.jobs.owner_limits import NO_LIMITS
from kinema.jobs.queue_database import QueueDatabase
from kinema.settings import Settings


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request, tmp_path, task_log):
    url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    return Settings(data_dir=tmp_path / "data", database_url=url, queue_size=8, min_free_gb=0)


@pytest.fixture
def observer(settings):
    with Queue(settings) as queue:
        yield queue


def test_job_completes_and_key_returns_it(queue):
    job = wait_finished(queue, queue.submit(NewJob(request(prompt="a fox"), idempotency_key="k")))
    assert queue.result(job.id).read_bytes() == expected_video(job.request, expected_image(job.request))
    assert queue.submit(NewJob(request(prompt="a fox"), idempotency_key="k")) == queue.get(job.id)
    with pytest.raises(IdempotencyKeyReused):
        queue.submit(NewJob(request(prompt="a hare"), idempotency_key="k"))


@pytest.fixture
def slow_once(postgresql_url, tmp_path, monkeypatch):
    """A queue on PostgreSQL that runs no jobs, and a function that lets the next transaction be ended as idle."""
    with Queue(Settings(data_dir=tmp_path / "data", database_url=postgresql_url, min_free_gb=0)) as queue:

        def let_end():
            notify = queue._table.database.notify

            def wait_for_end(connection, *arguments, **keywords):
                monkeypatch.setattr(queue._table.database, "notify", notify)
                notify(connection, *arguments, **keywords)
                session = connection.execute(sa.select(sa.func.pg_backend_pid())).scalar()
                query = sa.text(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {session}")
                connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 1"))
                with queue._table.database.read() as other:
                    other.execution_options(isolation_level="AUTOCOMMIT")
                    wait_until(lambda: other.execute(query).scalar() == 0)

            monkeypatch.setattr(queue._table.database, "notify", wait_for_end)

        yield queue, let_end


def test_transaction_that_was_ended_as_idle_is_begun_again(slow_once, caplog):
    queue, let_end = slow_once
    let_end()
    job = queue.submit(NewJob(request(), image=IMAGE))
    assert (job.queue_position, len(queue.list().jobs)) == (1, 1)
    assert len(caplog.records) == 1


def test_crash_keeps_finished_parts(settings, observer, task_log):
    job = observer.submit(NewJob(request(**BLOCKED, prompt="a fox")))
    server = Server(settings)
    try:
        wait_until(lambda: observer.get(job.id).stage == "denoise")
        server.kill()
        release_jobs(task_log)
        server.start()
        job = wait_finished(observer, job)
    finally:
        server.kill()
    assert observer.result(job.id).read_bytes() == expected_video(job.request, expected_image(job.request))
    assert [part for _, part, *_ in started_tasks(task_log)] == ["image", "latents", "latents", "video"]


def test_queue_positions_and_pages(observer):
    ids = [observer.submit(NewJob(request(seed=i), image=IMAGE, priority=p)).id for i, p in enumerate((0, 0, 5))]
    assert [observer.get(job_id).queue_position for job_id in ids] == [2, 3, 1]
    observer.cancel(ids[0])
    assert [observer.get(job_id).queue_position for job_id in ids] == [None, 2, 1]
    page = observer.list(after=ids[2], limit=1)
    assert ([job.id for job in page.jobs], page.has_more) == ([ids[1]], True)
    observer.delete(ids[1])
    with pytest.raises(JobNotFound):
        observer.get(ids[1])


@pytest.mark.parametrize(("priority", "minutes"), [(5, 5), (1000, 1000), (-5, -5)])
def test_each_step_of_priority_overtakes_one_minute_of_waiting(observer, monkeypatch, priority, minutes):
    now = 1_800_000_000.0
    monkeypatch.setattr("kinema.jobs.submitter.time", SimpleNamespace(time=lambda: now))
    waiting = observer.submit(NewJob(request(seed=0), image=IMAGE))
    now += 60 * minutes - 1
    ahead = observer.submit(NewJob(request(seed=1), image=IMAGE, priority=priority))
    now += 2
    behind = observer.submit(NewJob(request(seed=2), image=IMAGE, priority=priority))
    assert (waiting.queue_position, ahead.queue_position, behind.queue_position) == (1, 1, 3)
    assert [observer.get(job.id).queue_position for job in (waiting, ahead, behind)] == [2, 1, 3]
    claimed = [observer._table.claim([None])[0] for _ in range(3)]
    assert claimed == [ahead.id, waiting.id, behind.id]


def test_deletion_is_stored_until_files_are_deleted(observer):
    observer.check_database()
    job = observer.submit(NewJob(request(), image=IMAGE))
    observer.delete(job.id)
    assert observer._table.deletions() == [(job.id, (job.image, None))]
    observer._table.clear_deletions([job.id])
    assert observer._table.deletions() == []
    observer.check_database()


def test_concurrent_submits_never_exceed_queue_size(observer):
    refused = []

    def submit(seed):
        try:
            observer.submit(NewJob(request(seed=seed), image=IMAGE))
        except QueueFull as full:
            refused.append(full)

    threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (observer.waiting(), len(refused)) == (8, 12)


def test_invalid_job_does_not_fail_others_of_its_batch(observer):
    inserts = observer._submitter._inserts
    # Values that the queue itself rejects. SQLite fails at the text, PostgreSQL at the number.
    bad = {"title": "\ud800"} if observer._database.is_sqlite else {"priority": 2**40}
    results = {}

    def add(name, **changes):
        values = {"id": name, "model": "a", "owner": "", "priority": 0, "created_at": 0.0}
        values["request"] = request().model_dump_json()
        try:
            results[name] = inserts.add(values | changes, 8, NO_LIMITS)
        except InvalidRequest as error:
            results[name] = error

    threads = [threading.Thread(target=add, args=(name,), kwargs=bad if name == "b" else {}) for name in "abc"]
    with inserts._lock:  # so that all three share one batch
        for count, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda count=count: len(inserts._pending) == count)
    for thread in threads:
        thread.join()
    assert (results["a"], results["c"]) == (1, 2)
    assert "can't store this request" in str(results["b"])
    assert {job.id for job in observer.list().jobs} == {"a", "c"}


def test_second_server_starts_no_workers_while_first_one_runs(queue, settings, tmp_path):
    wait_until(lambda: queue.ready)
    elsewhere = settings.model_copy(update={"data_dir": tmp_path / "data"})
    server = Server(elsewhere)
    try:
        wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
        assert server.workers() == []
    finally:
        server.kill()


@pytest.mark.parametrize("act", ["cancel", "delete"])
@pytest.mark.parametrize("subscriber", ["scheduler", "other"])
def test_subscriber_gets_cancel_or_delete_by_another_process(queue, observer, subscriber, act):
    here, there = (queue, observer) if subscriber == "scheduler" else (observer, queue)
    running = queue.submit(NewJob(request(**BLOCKED), image=IMAGE))
    wait_until(lambda: queue.get(running.id).status == "in_progress")
    job = queue.submit(NewJob(request(seed=8), image=IMAGE))

    async def subscribe():
        jobs = here.subscribe_async(job.id)
        results = [(await anext(jobs)).status]
        await asyncio.to_thread(getattr(there, act), job.id)
        async with asyncio.timeout(TIMEOUT):
            return results + [now.status async for now in jobs]

    results = asyncio.run(subscribe())
    assert results[-1] == ("failed" if act == "cancel" else "queued")


def test_subscriber_of_another_process_gets_start_and_completion(queue, observer, task_log):
    job = observer.submit(NewJob(request(**BLOCKED), image=IMAGE))
    results = []
    for now in observer.subscribe(job.id):
        results.append(now.status)
        if now.status == "in_progress":
            release_jobs(task_log)
    assert list(dict.fromkeys(results))[-2:] == ["in_progress", "completed"]


def test_pinned_job_does_not_expire_and_unpinned_job_does(settings, monkeypatch, clock):
    monkeypatch.setattr("kinema.jobs.scheduler.HOUSEKEEPING_SECONDS", 0.1)
    with Queue(settings.model_copy(update={"keep_days": 2}), "queue_work:Work") as queue:
        job = wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
        assert job.expires_at == clock.now + 2 * DAY
        assert (queue.pin(job.id).pinned, queue.pin(job.id).expires_at) == (True, None)
        clock.now += 3 * DAY
        assert queue._table.expired() == []
        unpinned = queue.pin(job.id, pinned=False)
        assert (unpinned.pinned, unpinned.expires_at) == (False, clock.now + 2 * DAY)
        clock.now += 3 * DAY
        wait_until(lambda: not queue.list().jobs)


def test_job_pinned_at_expiry_is_kept(settings):
    with Queue(settings.model_copy(update={"keep_days": 1e-9})) as queue:
        job = queue.cancel(queue.submit(NewJob(request(), image=IMAGE)).id)
        wait_until(lambda: queue._table.expired() == [job.id])
        queue.pin(job.id)
        assert not queue._table.remove(job.id, only_expired=True)
        assert queue.get(job.id).pinned


def test_title_and_pin_change_while_job_runs(queue, observer):
    job = queue.submit(NewJob(request(**BLOCKED), image=IMAGE, title="one"))
    results = queue.subscribe(job.id)
    next(now for now in results if now.stage == "denoise")
    assert (queue.rename(job.id, "other").title, queue.pin(job.id).pinned) == ("other", True)
    later = [next(results) for _ in range(5)][-1]
    assert (later.stage, later.title, later.pinned) == ("denoise", "other", True)
    assert (observer.get(job.id).title, observer.cancel(job.id).expires_at) == ("other", None)
    for change in (observer.pin, lambda job_id: observer.rename(job_id, "x")):
        with pytest.raises(JobNotFound):
            change("video_" + "0" * 32)


def test_doctor_connects_to_postgresql(postgresql_url):
    assert check_services(Settings(database_url=postgresql_url))["database"]["problem"] is None
    missing = f"{postgresql_url.partition('?')[0]}_missing?{postgresql_url.partition('?')[2]}"
    assert "does not exist" in check_services(Settings(database_url=missing))["database"]["problem"]


def test_shown_url_of_a_database_has_no_password(postgresql_url):
    database = QueueDatabase(f"{postgresql_url}&password=secret".replace("postgres:@", "postgres:secret@"))
    database.close()
    assert database.display_url.startswith("postgresql://")
    assert "secret" not in database.display_url
