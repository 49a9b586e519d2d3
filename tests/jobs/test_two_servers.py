"""Several servers with one database: only one runs the jobs, even if it is frozen or loses its connections."""

import contextlib
import signal
import threading
import time

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

from kinema.errors import QueueUnavailable
from kinema.jobs import NewJob, Queue
from kinema.jobs.worker_state import PoolState, WorkerState
from kinema.settings import Settings


class Database:
    """The tests' own connection to a database."""

    def __init__(self, url):
        self.engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    def execute(self, statement):
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement))

    def cut_connections(self):
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    @contextlib.contextmanager
    def taken_lease(self):
        """Take the scheduler's lease, as another server does when the lease has expired."""
        self.execute("UPDATE kinema_scheduler SET holder = 'another', folder = 'another', expires_at = 1e11")
        yield
        self.execute("DELETE FROM kinema_scheduler")


@pytest.fixture
def database(postgresql_url):
    database = Database(postgresql_url)
    yield database
    database.engine.dispose()


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


def test_job_continues_after_all_connections_were_cut(postgres_settings, task_log, database):
    with Queue(postgres_settings, "queue_work:Work") as queue:
        job = queue.submit(NewJob(request(**BLOCKED), image=IMAGE))
        wait_until(lambda: queue.get(job.id).stage == "denoise")
        database.cut_connections()
        release_jobs(task_log)
        job = wait_finished(queue, job)
        assert (job.status, job.attempts, queue.problems) == ("completed", 0, ())
        assert queue.result(job.id).read_bytes() == expected_video(job.request, IMAGE)
    assert [part for _, part, *_ in started_tasks(task_log)] == ["latents", "video"]


def test_scheduler_stops_while_another_has_its_lease(postgres_settings, task_log, database):
    finished_jobs = []
    with Queue(postgres_settings, "queue_work:Work", devices=("cpu", "cpu"), on_finished=finished_jobs.append) as queue:
        jobs = [queue.submit(NewJob(request(**BLOCKED, seed=seed), image=IMAGE)) for seed in range(3)]
        wait_until(lambda: [queue.get(job.id).stage for job in jobs] == ["denoise", "denoise", None])
        with database.taken_lease():
            wait_until(lambda: queue.problems and "another server, with another data folder" in queue.problems[0])
            assert (queue.ready, queue.running(), queue.worker_pids) == (False, 0, (None, None))
            release_jobs(task_log)
            assert [queue.get(job.id).status for job in jobs] == ["in_progress", "in_progress", "queued"]
            with pytest.raises(QueueUnavailable, match="another server"):
                queue.submit(NewJob(request(), image=IMAGE))
        assert [wait_finished(queue, job).status for job in jobs] == ["completed"] * 3
        wait_until(lambda: len(finished_jobs) == 3)
    assert {job.id for job in finished_jobs} == {job.id for job in jobs}
    assert all(job.attempts == 0 for job in finished_jobs)


def test_scheduler_writes_nothing_after_another_took_its_lease(postgres_settings, database):
    with Queue(postgres_settings) as queue:
        job = queue.submit(NewJob(request(), image=IMAGE))
        table, leases = queue._table, queue._database
        with leases.sole_scheduler() as acquired:
            assert (acquired, leases.keep_scheduling("[]"), leases.has_scheduler()) == (
                True,
                True,
                True,
            )
            assert table.claim([None])[0] == job.id
            with database.taken_lease():
                for change in (
                    lambda: table.complete(job.id, 1.0),
                    lambda: table.record(job.id, step=1),
                    lambda: table.requeue(job.id),
                    lambda: table.claim([None]),
                ):
                    with pytest.raises(QueueUnavailable, match="another process"):
                        change()
                assert (leases.keep_scheduling("[]"), leases.has_scheduler()) == (False, True)
            assert (leases.keep_scheduling("[]"), leases.has_scheduler()) == (
                False,
                False,
            )  # lost for good
        assert queue.get(job.id).status == "in_progress"
        assert queue.cancel(job.id).status == "failed"  # which needs no lease
        with leases.sole_scheduler() as acquired:
            assert (acquired, leases.keep_scheduling("[]")) == (True, True)


@pytest.mark.slow
def test_transaction_of_a_frozen_scheduler_does_not_keep_the_lease(postgres_settings, database):
    with (
        Queue(postgres_settings) as queue,
        Queue(postgres_settings) as other,
        queue._database.sole_scheduler(),
        contextlib.suppress(QueueUnavailable),
        queue._database.write_as_scheduler(),
    ):
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            began = time.monotonic()
            connection.execute(sa.text("UPDATE kinema_scheduler SET expires_at = 0"))  # waits for the transaction
            assert time.monotonic() - began < 10
        with other._database.sole_scheduler() as acquired:
            assert acquired


def test_lease_is_taken_after_it_expired_or_after_its_holder_in_the_same_folder_ended(postgres_settings, database):
    with Queue(postgres_settings) as queue:
        leases = queue._database

        def is_taken_by(folder, *, is_sole_in_folder):
            with leases.sole_scheduler(folder, is_sole_in_folder=is_sole_in_folder) as acquired:
                return acquired

        for holds_folder in (True, False):
            row = f"(1, 'gone', 'a', {holds_folder}, extract(epoch from now()) + 1000, '[]')"
            database.execute(f"INSERT INTO kinema_scheduler VALUES {row}")
            assert not is_taken_by("b", is_sole_in_folder=True)
            assert not is_taken_by("a", is_sole_in_folder=False)
            assert is_taken_by("a", is_sole_in_folder=True) == holds_folder
            database.execute("UPDATE kinema_scheduler SET expires_at = 0")
            assert is_taken_by("b", is_sole_in_folder=False)  # and released


def test_second_server_of_a_folder_stands_by_and_follows_the_first_without_polling(
    postgres_settings, task_log, monkeypatch
):
    monkeypatch.setattr("kinema.jobs.job_updates.POLL_SECONDS", 3600.0)
    monkeypatch.setattr("kinema.jobs.scheduler.POLL_SECONDS", 3600.0)
    with Queue(postgres_settings, "queue_work:WithDevice") as first:
        wait_until(lambda: first.ready)
        with Queue(postgres_settings, "queue_work:Work") as second:
            wait_until(lambda: second.is_standby)
            idle = WorkerState("cuda:2", "idle", "default", (), None, None, 2)
            wait_until(lambda: second.pool_state == PoolState((idle,)))
            assert not second.ready
            jobs = [second.submit(NewJob(request(**BLOCKED, seed=seed), image=IMAGE)) for seed in range(4)]
            changes = {job.id: [] for job in jobs}
            followers = [Follower(second, job.id, changes[job.id]) for job in jobs]
            wait_until(lambda: changes[jobs[0].id] and changes[jobs[0].id][-1].stage == "denoise")
            wait_until(lambda: second.workers and second.workers[0].jobs[:1] == (jobs[0].id,))
            wait_until(lambda: second.workers[0].model == jobs[0].request.model)
            second.delete(jobs[1].id)
            second.cancel(jobs[0].id)
            wait_until(lambda: first.get(jobs[2].id).stage == "denoise")
            wait_until(lambda: changes[jobs[3].id][-1].queue_position == 1)
            release_jobs(task_log)
            for follower in followers:
                follower.join(TIMEOUT)
                assert not follower.is_alive()
    assert [changes[job.id][-1].status for job in jobs] == ["failed", "queued", "completed", "completed"]


class Follower(threading.Thread):
    """Collects the changes of a job."""

    def __init__(self, queue, job_id, changes):
        super().__init__(daemon=True)
        self.queue, self.job_id, self.changes = queue, job_id, changes
        self.start()

    def run(self):
        for job in self.queue.subscribe(self.job_id):
            self.changes.append(job)


@pytest.mark.slow
def test_another_server_takes_over_from_a_frozen_one_which_then_writes_nothing(postgres_settings, tmp_path, task_log):
    here, there = (postgres_settings.model_copy(update={"data_dir": tmp_path / name}) for name in "ab")
    with Queue(here) as client:
        jobs = [client.submit(NewJob(request(**BLOCKED, seed=seed, prompt="a fox"))) for seed in range(3)]
        servers = [Server(here)]
        try:
            wait_until(lambda: client.get(jobs[0].id).stage == "denoise")
            servers.append(Server(there))
            for frozen in servers:  # the first, and then the one that took over
                frozen.process.send_signal(signal.SIGSTOP)
                started = len(started_tasks(task_log))
                wait_until(lambda started=started: len(started_tasks(task_log)) > started)
                frozen.process.send_signal(signal.SIGCONT)
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
                    other.submit(NewJob(**arguments))
        assert (submitting.list().jobs, list((there.data_dir / "images").iterdir())) == ((), [])
        for same_folder in (queue, second):
            assert (
                wait_finished(
                    same_folder, same_folder.submit(NewJob(request(), image=IMAGE, idempotency_key="k"))
                ).status
                == "completed"
            )
        assert submitting.submit(NewJob(request(), image=IMAGE, idempotency_key="k")).status == "completed"


def test_submit_works_without_scheduler_and_after_takeover_of_its_folder(folders):
    here, there = folders
    with Queue(there) as submitting:
        with Queue(here, "queue_work:Work") as queue:
            wait_until(lambda: queue.ready)
        job = submitting.submit(NewJob(request(), image=IMAGE))
        with Queue(there, "queue_work:Work") as queue:
            assert wait_finished(queue, job).status == "completed"
            assert (
                wait_finished(submitting, submitting.submit(NewJob(request(seed=1), image=IMAGE))).status == "completed"
            )


def test_takeover_with_new_folder_regenerates_image_and_fails_job_with_missing_upload(folders, task_log):
    here, there = folders
    with Queue(here, "queue_work:Work") as queue:
        job = queue.submit(NewJob(request(**BLOCKED, prompt="a fox")))
        uploaded = queue.submit(NewJob(request(), image=IMAGE))
        wait_until(lambda: queue.get(job.id).stage == "denoise")
    release_jobs(task_log)
    with Queue(there, "queue_work:Work") as queue:
        job, uploaded = wait_finished(queue, job), wait_finished(queue, uploaded)
        assert queue.result(job.id).read_bytes() == expected_video(job.request, expected_image(job.request))
    assert (uploaded.status, uploaded.error.code) == ("failed", "interrupted")
    assert "its image is not in the data folder" in uploaded.error.message
