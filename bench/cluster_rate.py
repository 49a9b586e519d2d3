"""Measure how a Ray cluster's rate of jobs grows with its workers; stand-in work of half a second, on this machine:

    python bench/cluster_rate.py --out bench/results/cluster-rate-here.json

The cluster has a head and up to four nodes of two logical GPUs. For each number of workers, all jobs are queued before;
the rate is that of all completions but the first of each worker. Linear is the rate of one worker times their number.
The nodes and the server share the machine's cores, so this measures the overhead of a job, not the work.
"""

import argparse
import datetime
import json
import logging
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

STUB = Path(__file__).parents[1] / "tests" / "jobs"
sys.path.append(str(STUB))

from queue_helpers import IMAGE, request  # noqa: E402 - it is not in a package
from ray.cluster_utils import Cluster  # noqa: E402

from kinema.jobs import NewJob, Queue  # noqa: E402
from kinema.settings import Settings  # noqa: E402

# 2 + 15 + 3 steps of 25 milliseconds
JOB = {"num_inference_steps": 15, "motion_bucket_id": 25}
JOBS_PER_WORKER = 24
GPUS_PER_NODE = 2


@contextmanager
def cluster_of(workers: int) -> Iterator[str]:
    """Start a cluster with logical GPUs; yield its address."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    try:
        for first in range(0, workers, GPUS_PER_NODE):
            cluster.add_node(num_cpus=1, num_gpus=min(GPUS_PER_NODE, workers - first))
        yield cluster.address
    finally:
        cluster.shutdown()


def measure(workers: int) -> dict[str, Any]:
    """Return the rate of a cluster with this many workers, in jobs per second, and the time between jobs."""
    with cluster_of(workers) as address, tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder) / "data", min_free_gb=0, queue_size=10_000, ray_address=address)
        with Queue(settings, "queue_work:Work") as queue:
            while queue.ready_workers < workers:
                time.sleep(0.1)
            jobs = [NewJob(request(seed=i, **JOB), image=IMAGE) for i in range(workers * JOBS_PER_WORKER)]
            ids = [queue.submit(each).id for each in jobs]
            while any(not queue.get(name).finished for name in ids[-2 * workers :]):
                time.sleep(0.2)
            with closing(sqlite3.connect(settings.data_dir / "jobs.sqlite3")) as database:
                rows = database.execute("SELECT status, completed_at FROM kinema_jobs ORDER BY completed_at").fetchall()
    assert all(status == "completed" for status, _ in rows), rows
    ends = [ended for _, ended in rows]
    rate = (len(ends) - workers) / (ends[-1] - ends[workers - 1])
    return {"workers": workers, "jobs": len(ends), "jobs_per_second": round(rate, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    os.environ |= {"PYTHONPATH": str(STUB), "STUB_TASK_LOG": tempfile.mkdtemp(), "OMP_NUM_THREADS": "1"}
    results = []
    for workers in args.workers:
        results.append(measure(workers))
        share = results[-1]["jobs_per_second"] / (workers / args.workers[0] * results[0]["jobs_per_second"])
        results[-1]["share_of_linear"] = round(share, 3)
        print(results[-1], flush=True)
    record = {
        "what": "rate of stand-in jobs of 0.5 s on a Ray cluster of one machine, with 2 logical GPUs per node",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{psutil.cpu_count()} cores, Python {sys.version.split()[0]}",
        "load_before": os.getloadavg()[0],
        "milliseconds_per_job_of_one_worker": round(1000 / statistics.fmean([results[0]["jobs_per_second"]]), 1),
        "results": results,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
