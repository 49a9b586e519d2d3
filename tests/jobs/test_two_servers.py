"""Of several servers on one database one runs the jobs, also after it lost the connection that said so."""

import contextlib

import pytest
import sqlalchemy as sa
from queue_helpers import HELD, IMAGE, Server, begun, finished, let_go, request, until
from queue_work import drawn, expected

from kinema.errors import QueueUnavailable
from kinema.jobs import Queue
from kinema.jobs.job_table import JobTable
from kinema.settings import Settings

RUNNERS = """
    SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE locktype = 'advisory' AND granted AND objid::bigint = 1852140898 AND datname = current_database()
"""


@pytest.fixture
def cut(postgresql_url):
    """Cut the connection that holds the lock of whoever runs the jobs."""
    engine = sa.create_engine(postgresql_url.replace("postgresql://", "postgresql+psycopg://"))

    def terminate():
        with engine.connect() as connection:
            (pid,) = connection.execute(sa.text(RUNNERS)).scalars()
            connection.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            until(lambda: pid not in connection.execute(sa.text(RUNNERS)).scalars().all())

    yield terminate
    engine.dispose()


@pytest.fixture
def postgres_settings(tmp_path, notes, postgresql_url):
    return Settings(data_dir=tmp_path / "data", database_url=postgresql_url, min_free_gb=0)


@pytest.fixture(params=["sqlite", "postgresql"])
def folders(request, tmp_path, notes):
    """The settings of two servers with one database."""
    url = f"sqlite:///{tmp_path}/shared.sqlite3"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    return [Settings(data_dir=tmp_path / name, database_url=url, min_free_gb=0) for name in ("a", "b")]


@contextlib.contextmanager
def held_lock(url):
    """The lock, taken as another server would."""
    store = JobTable(url)
    with contextlib.ExitStack() as holding:

        def take():
            with contextlib.ExitStack() as tried:
                if taken := tried.enter_context(store.sole_runner()):
                    holding.push(tried.pop_all())
                return taken

        until(take)
        yield
    store.close()


def test_a_job_is_begun_again_when_the_connection_of_its_runner_was_cut(postgres_settings, notes, cut):
    with Queue(postgres_settings, "queue_work:Work") as queue:
        job = queue.submit(request(**HELD), image=IMAGE)
        until(lambda: queue.get(job.id).stage == "denoise")
        cut()
        until(lambda: len(begun(notes)) == 2)
        let_go(notes)
        job = finished(queue, job)
        assert (job.status, job.attempts, queue.problems) == ("completed", 0, ())
        assert queue.result(job.id).read_bytes() == expected(job.request, IMAGE)
    assert [part for _, part, *_ in begun(notes)] == ["latents", "latents", "video"]


def test_a_runner_stops_while_another_holds_the_lock_that_it_lost(postgres_settings, postgresql_url, notes, cut):
    ended = []
    with Queue(postgres_settings, "queue_work:Work", devices=("cpu", "cpu"), ended=ended.append) as queue:
        jobs = [queue.submit(request(**HELD, seed=seed), image=IMAGE) for seed in range(3)]
        until(lambda: [queue.get(job.id).stage for job in jobs] == ["denoise", "denoise", None])
        cut()
        with held_lock(postgresql_url):
            until(lambda: queue.problems and "another server, with another data folder" in queue.problems[0])
            assert (queue.ready, queue.running(), queue.workers) == (False, 0, (None, None))
            let_go(notes)
            assert [queue.get(job.id).status for job in jobs] == ["in_progress", "in_progress", "queued"]
            with pytest.raises(QueueUnavailable, match="another server"):
                queue.submit(request(), image=IMAGE)
        assert [finished(queue, job).status for job in jobs] == ["completed"] * 3
        until(lambda: len(ended) == 3)
    assert {job.id for job in ended} == {job.id for job in jobs}
    assert all(job.attempts == 0 for job in ended)


def test_a_runner_writes_nothing_of_jobs_once_its_connection_was_cut(postgresql_url, postgres_settings, cut):
    with Queue(postgres_settings) as queue:
        job = queue.submit(request(), image=IMAGE)
        store = queue._store
        with store.sole_runner() as alone:
            assert (alone, store.is_sole_runner(), store.has_runner()) == (True, True, True)
            assert store.claim([None])[0] == job.id
            cut()
            for change in (
                lambda: store.complete(job.id, 1.0),
                lambda: store.record(job.id, step=1),
                lambda: store.unclaim(job.id),
                lambda: store.claim([None]),
            ):
                with pytest.raises(QueueUnavailable):
                    change()
            assert (store.is_sole_runner(), store.has_runner()) == (False, False)
        assert queue.get(job.id).status == "in_progress"
        assert queue.cancel(job.id).status == "failed"  # as anyone may
        with store.sole_runner() as alone:
            assert (alone, store.is_sole_runner()) == (True, True)


def test_each_job_of_two_servers_is_done_once_however_often_their_connections_are_cut(
    postgres_settings, tmp_path, notes, cut
):
    here, there = (postgres_settings.model_copy(update={"data_dir": tmp_path / name}) for name in "ab")
    with Queue(here) as client:
        jobs = [client.submit(request(**HELD, seed=seed, prompt="a fox")) for seed in range(3)]
        servers = [Server(here), Server(there)]
        try:
            for times in range(2):
                until(lambda times=times: len([1 for _, part, *_ in begun(notes) if part == "latents"]) > times)
                cut()
            let_go(notes)
            done = [finished(client, job) for job in jobs]
        finally:
            for server in servers:
                server.kill()
    assert [(job.status, job.attempts) for job in done] == [("completed", 0)] * 3
    for job in done:
        videos = [settings.data_dir / "jobs" / job.id / "video.mp4" for settings in (here, there)]
        assert {video.read_bytes() for video in videos if video.exists()} == {expected(job.request, drawn(job.request))}


def test_a_server_takes_no_job_while_one_with_another_folder_runs_them(folders):
    here, there = folders
    with (
        Queue(here, "queue_work:Work") as queue,
        Queue(here) as beside,
        Queue(there) as submitting,
        Queue(there, "queue_work:Work") as waiting,
    ):
        until(lambda: queue.ready and waiting.problems)
        assert (waiting.ready, "start this one with the same data folder" in waiting.problems[0]) == (False, True)
        for other in (submitting, waiting):
            for asked in ({"request": request(), "image": IMAGE}, {"request": request(prompt="a fox")}):
                with pytest.raises(QueueUnavailable, match="another server, with another data folder"):
                    other.submit(**asked)
        assert (submitting.list().jobs, list((there.data_dir / "images").iterdir())) == ((), [])
        for near in (queue, beside):
            assert finished(near, near.submit(request(), image=IMAGE, idempotency_key="k")).status == "completed"
        assert submitting.submit(request(), image=IMAGE, idempotency_key="k").status == "completed"


def test_a_server_takes_jobs_while_none_runs_them_and_where_one_took_its_folder_over(folders):
    here, there = folders
    with Queue(there) as submitting:
        with Queue(here, "queue_work:Work") as queue:
            until(lambda: queue.ready)
        job = submitting.submit(request(), image=IMAGE)
        with Queue(there, "queue_work:Work") as queue:
            assert finished(queue, job).status == "completed"
            assert finished(submitting, submitting.submit(request(seed=1), image=IMAGE)).status == "completed"


def test_a_server_that_takes_over_with_a_new_folder_draws_again_and_says_which_image_is_missing(folders, notes):
    here, there = folders
    with Queue(here, "queue_work:Work") as queue:
        job = queue.submit(request(**HELD, prompt="a fox"))
        given = queue.submit(request(), image=IMAGE)
        until(lambda: queue.get(job.id).stage == "denoise")
    let_go(notes)
    with Queue(there, "queue_work:Work") as queue:
        job, given = finished(queue, job), finished(queue, given)
        assert queue.result(job.id).read_bytes() == expected(job.request, drawn(job.request))
    assert (given.status, given.error.code) == ("failed", "interrupted")
    assert "its image is not in the data folder" in given.error.message
