"""Several servers with one database: only one runs the jobs, even if it loses the connection with its lock."""

import contextlib

import pytest
import sqlalchemy as sa
from queue_helpers import BLOCKED, IMAGE, Server, release_jobs, request, started_tasks, wait_finished, wait_until
from queue_work import expected_image, expected_video

from kinema.errors import QueueUnavailable
from kinema.jobs import Queue
from kinema.jobs.job_table import JobTable
from kinema.settings import Settings

LOCK_HOLDERS = """
    SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE locktype = 'advisory' AND granted AND objid::bigint = 1852140898 AND datname = current_database()
"""


@pytest.fixture
def cut_connection(postgresql_url):
    """A function that terminates the connection that holds the scheduler lock."""
    engine = sa.create_engine(postgresql_url.replace("postgresql://", "postgresql+psycopg://"))

    def terminate():
        with engine.connect() as connection:
            (pid,) = connection.execute(sa.text(LOCK_HOLDERS)).scalars()
            connection.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            wait_until(lambda: pid not in connection.execute(sa.text(LOCK_HOLDERS)).scalars().all())

    yield terminate
    engine.dispose()


@pytest.fixture
def postgres_settings(tmp_path, task_log, postgresql_url):
    return Settings(data_dir=tmp_path / "data", database_url=postgresql_url, min_free_gb=0)


@pytest.fixture(params=["sqlite", "postgresql"])
def folders(request, tmp_path, task_log):
    """The settings of two servers with one database."""
    url = f"sqlite:///{tmp_path}/shared.sqlite3"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    return [Settings(data_dir=tmp_path / name, database_url=url, min_free_gb=0) for name in ("a", "b")]


@contextlib.contextmanager
def held_lock(url):
    """Take the scheduler lock, as another server would."""
    table = JobTable(url)
    with contextlib.ExitStack() as locks:

        def acquire():
            with contextlib.ExitStack() as attempt:
                if acquired := attempt.enter_context(table.sole_scheduler()):
                    locks.push(attempt.pop_all())
                return acquired

        wait_until(acquire)
        yield
    table.close()


def test_job_restarts_after_scheduler_lost_its_connection(postgres_settings, task_log, cut_connection):
    with Queue(postgres_settings, "queue_work:Work") as queue:
        job = queue.submit(request(**BLOCKED), image=IMAGE)
        wait_until(lambda: queue.get(job.id).stage == "denoise")
        cut_connection()
        wait_until(lambda: len(started_tasks(task_log)) == 2)
        release_jobs(task_log)
        job = wait_finished(queue, job)
        assert (job.status, job.attempts, queue.problems) == ("completed", 0, ())
        assert queue.result(job.id).read_bytes() == expected_video(job.request, IMAGE)
    assert [part for _, part, *_ in started_tasks(task_log)] == ["latents", "latents", "video"]


def test_scheduler_stops_while_another_holds_its_lost_lock(postgres_settings, postgresql_url, task_log, cut_connection):
    finished_jobs = []
    with Queue(postgres_settings, "queue_work:Work", devices=("cpu", "cpu"), on_finished=finished_jobs.append) as queue:
        jobs = [queue.submit(request(**BLOCKED, seed=seed), image=IMAGE) for seed in range(3)]
        wait_until(lambda: [queue.get(job.id).stage for job in jobs] == ["denoise", "denoise", None])
        cut_connection()
        with held_lock(postgresql_url):
            wait_until(lambda: queue.problems and "another server, with another data folder" in queue.problems[0])
            assert (queue.ready, queue.running(), queue.worker_pids) == (False, 0, (None, None))
            release_jobs(task_log)
            assert [queue.get(job.id).status for job in jobs] == ["in_progress", "in_progress", "queued"]
            with pytest.raises(QueueUnavailable, match="another server"):
                queue.submit(request(), image=IMAGE)
        assert [wait_finished(queue, job).status for job in jobs] == ["completed"] * 3
        wait_until(lambda: len(finished_jobs) == 3)
    assert {job.id for job in finished_jobs} == {job.id for job in jobs}
    assert all(job.attempts == 0 for job in finished_jobs)


def test_scheduler_writes_nothing_after_losing_its_connection(postgresql_url, postgres_settings, cut_connection):
    with Queue(postgres_settings) as queue:
        job = queue.submit(request(), image=IMAGE)
        table = queue._table
        with table.sole_scheduler() as acquired:
            assert (acquired, table.is_sole_scheduler(), table.has_scheduler()) == (True, True, True)
            assert table.claim([None])[0] == job.id
            cut_connection()
            for change in (
                lambda: table.complete(job.id, 1.0),
                lambda: table.record(job.id, step=1),
                lambda: table.requeue(job.id),
                lambda: table.claim([None]),
            ):
                with pytest.raises(QueueUnavailable):
                    change()
            assert (table.is_sole_scheduler(), table.has_scheduler()) == (False, False)
        assert queue.get(job.id).status == "in_progress"
        assert queue.cancel(job.id).status == "failed"  # which needs no lock
        with table.sole_scheduler() as acquired:
            assert (acquired, table.is_sole_scheduler()) == (True, True)


@pytest.mark.slow
def test_two_servers_complete_each_job_once_after_lost_connections(
    postgres_settings, tmp_path, task_log, cut_connection
):
    here, there = (postgres_settings.model_copy(update={"data_dir": tmp_path / name}) for name in "ab")
    with Queue(here) as client:
        jobs = [client.submit(request(**BLOCKED, seed=seed, prompt="a fox")) for seed in range(3)]
        servers = [Server(here), Server(there)]
        try:
            for times in range(2):
                wait_until(
                    lambda times=times: len([1 for _, part, *_ in started_tasks(task_log) if part == "latents"]) > times
                )
                cut_connection()
            release_jobs(task_log)
            done = [wait_finished(client, job) for job in jobs]
        finally:
            for server in servers:
                server.kill()
    assert [(job.status, job.attempts) for job in done] == [("completed", 0)] * 3
    for job in done:
        videos = [settings.data_dir / "jobs" / job.id / "video.mp4" for settings in (here, there)]
        assert {video.read_bytes() for video in videos if video.exists()} == {
            expected_video(job.request, expected_image(job.request))
        }


def test_submit_fails_while_server_with_another_folder_runs_jobs(folders):
    here, there = folders
    with (
        Queue(here, "queue_work:Work") as queue,
        Queue(here) as second,
        Queue(there) as submitting,
        Queue(there, "queue_work:Work") as waiting,
    ):
        wait_until(lambda: queue.ready and waiting.problems)
        assert (waiting.ready, "start this one with the same data folder" in waiting.problems[0]) == (False, True)
        for other in (submitting, waiting):
            for arguments in ({"request": request(), "image": IMAGE}, {"request": request(prompt="a fox")}):
                with pytest.raises(QueueUnavailable, match="another server, with another data folder"):
                    other.submit(**arguments)
        assert (submitting.list().jobs, list((there.data_dir / "images").iterdir())) == ((), [])
        for same_folder in (queue, second):
            assert (
                wait_finished(same_folder, same_folder.submit(request(), image=IMAGE, idempotency_key="k")).status
                == "completed"
            )
        assert submitting.submit(request(), image=IMAGE, idempotency_key="k").status == "completed"


def test_submit_works_without_scheduler_and_after_takeover_of_its_folder(folders):
    here, there = folders
    with Queue(there) as submitting:
        with Queue(here, "queue_work:Work") as queue:
            wait_until(lambda: queue.ready)
        job = submitting.submit(request(), image=IMAGE)
        with Queue(there, "queue_work:Work") as queue:
            assert wait_finished(queue, job).status == "completed"
            assert wait_finished(submitting, submitting.submit(request(seed=1), image=IMAGE)).status == "completed"


def test_takeover_with_new_folder_regenerates_image_and_fails_job_with_missing_upload(folders, task_log):
    here, there = folders
    with Queue(here, "queue_work:Work") as queue:
        job = queue.submit(request(**BLOCKED, prompt="a fox"))
        uploaded = queue.submit(request(), image=IMAGE)
        wait_until(lambda: queue.get(job.id).stage == "denoise")
    release_jobs(task_log)
    with Queue(there, "queue_work:Work") as queue:
        job, uploaded = wait_finished(queue, job), wait_finished(queue, uploaded)
        assert queue.result(job.id).read_bytes() == expected_video(job.request, expected_image(job.request))
    assert (uploaded.status, uploaded.error.code) == ("failed", "interrupted")
    assert "its image is not in the data folder" in uploaded.error.message
