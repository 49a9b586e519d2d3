"""The client of `cluster_faults.py`: submits jobs all the time, watches each, and checks what became of them."""

import contextlib
import itertools
import sys
import threading
import time
from pathlib import Path

import sqlalchemy as sa

sys.path.append(str(Path(__file__).parents[1] / "jobs"))

from queue_helpers import IMAGE, request
from queue_work import expected_video

from kinema.errors import QueueUnavailable
from kinema.jobs import NewJob, Queue
from kinema.settings import Settings

# 40 to 60 steps of 50 ms.
STEP_MILLISECONDS, STEPS = 50, (40, 60)
UNFINISHED = 5
# Counts every change of a job's status, whoever makes it.
AUDIT = """
CREATE TABLE IF NOT EXISTS audit (job text, status text, at timestamptz DEFAULT clock_timestamp());
CREATE OR REPLACE FUNCTION audit_status() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO audit (job, status) VALUES (NEW.id, NEW.status); RETURN NEW; END $$;
CREATE OR REPLACE TRIGGER audit_status AFTER UPDATE OF status ON kinema_jobs FOR EACH ROW
WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION audit_status();
"""
FIRST_START = "SELECT min(extract(epoch FROM at)) FROM audit WHERE status = 'in_progress' AND at > to_timestamp(%s)"
COMPLETIONS = "SELECT job, count(*) FROM audit WHERE status = 'completed' GROUP BY job"


class Load:
    """Keeps UNFINISHED jobs in the queue."""

    def __init__(self, data, database_url, chance):
        self.queue = Queue(Settings(data_dir=data, database_url=database_url, min_free_gb=0))
        self.queue.open()
        self.submitted, self.finished = {}, {}  # jobs by number
        self._chance = chance
        self._numbers = itertools.count()
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._threads = []
        url = database_url.replace("postgresql://", "postgresql+psycopg://")
        engine = sa.create_engine(url, pool_pre_ping=True)
        with engine.begin() as connection:
            connection.exec_driver_sql(AUDIT)
        self._engine = engine
        self._thread = threading.Thread(target=self._submit_all_the_time, daemon=True)

    def start(self):
        self._thread.start()

    def stop(self):
        """Submit no more jobs."""
        self._stopping.set()
        self._thread.join()

    def close(self):
        self.queue.close()
        self._engine.dispose()

    @property
    def unfinished(self):
        """The numbers of the unfinished jobs."""
        with self._lock:
            return self.submitted.keys() - self.finished.keys()

    def submit(self, priority=0):
        """Submit a job, however often that takes, and watch it in a thread; return its number."""
        with self._lock:
            number = next(self._numbers)
        steps = self._chance.randint(*STEPS)
        wanted = request(seed=number, num_inference_steps=steps, motion_bucket_id=STEP_MILLISECONDS)
        job = persist(
            lambda: self.queue.submit(NewJob(wanted, image=IMAGE, priority=priority, idempotency_key=f"job-{number}"))
        )
        with self._lock:
            self.submitted[number] = job
        threading.Thread(target=self._watch, args=(number, job.id), daemon=True).start()
        return number

    def ready_workers(self):
        """Return the number of workers that the scheduling front end says are ready, or 0 without an answer."""
        with contextlib.suppress(QueueUnavailable):
            return sum(worker.status != "starting" for worker in self.queue.workers)
        return 0

    def first_start_after(self, moment):
        """Return when the first job started after a moment, or None."""
        with contextlib.suppress(sa.exc.SQLAlchemyError), self._engine.begin() as connection:
            (found,) = connection.exec_driver_sql(FIRST_START, (moment,)).one()
            return None if found is None else float(found)
        return None

    def _submit_all_the_time(self):
        while not self._stopping.wait(0.1):
            if len(self.unfinished) < UNFINISHED:
                self.submit()

    def _watch(self, number, job_id):
        """Follow a job's events until it is finished."""

        def follow():
            job = None
            for job in self.queue.subscribe(job_id):  # noqa: B007 - the last state counts
                pass
            return job

        job = persist(follow)
        with self._lock:
            self.finished[number] = job

    # Checks

    def faults(self):
        """Return what is wrong with the jobs, all of which should be finished."""
        with self._engine.begin() as connection:
            rows = connection.exec_driver_sql("SELECT id, status FROM kinema_jobs").all()
            completions = dict(connection.exec_driver_sql(COMPLETIONS).all())
        wrong = [f"job {self.submitted[number].id} is not finished" for number in self.unfinished]
        if (stored := {row.id for row in rows}) != (known := {job.id for job in self.submitted.values()}):
            wrong.append(f"lost: {known - stored}, not submitted: {stored - known}")
        for job in self.finished.values():
            wrong += self._faults_of(job, completions.get(job.id, 0))
        wrong += [f"partial file {path}" for path in self.queue._files.root.rglob(".*") if ".partial" in path.name]
        return wrong

    def _faults_of(self, job, completions):
        if job is None:
            return ["a job was deleted"]
        if job.status == "failed":
            expected = (job.error.code, job.attempts, completions) == ("worker_died", 3, 0)
            return [] if expected else [f"job {job.id} failed: {job.error}, {job.attempts} attempts"]
        wrong = [] if completions == 1 else [f"job {job.id} was completed {completions} times"]
        if self.queue.result(job.id).read_bytes() != expected_video(job.request, IMAGE):
            wrong.append(f"job {job.id} has a wrong video")
        return wrong

    def counts(self):
        jobs = list(self.finished.values())
        return {
            "submitted": len(self.submitted),
            "completed": sum(job.status == "completed" for job in jobs),
            "failed": sum(job.status == "failed" for job in jobs),
            "with_attempts": sum(job.attempts > 0 for job in jobs),
        }


def persist(action):
    """Return the action's result; repeat it while the database does not answer."""
    while True:
        try:
            return action()
        except QueueUnavailable:
            time.sleep(0.2)
