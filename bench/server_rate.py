"""Compare the server's rate of videos with the engine's own, on this machine and in one run:

    python bench/server_rate.py --jobs 6 --out bench/results/server-rate-here.json
    python bench/svd_xt.py /tmp/svd-xt
    python bench/server_rate.py --model /tmp/svd-xt --jobs 24 --note "random weights"

The engine's own rate is that of `generate` without a file, in a process of its own: one video to warm up, then the
median of several. The server's rate is the number of jobs by the seconds from the first claim to the last completion,
with all jobs queued before. With several workers, the engine's rate counts once for each. Close other programs first.
"""

import argparse
import datetime
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "serving"))

from server_process import Server, child_processes, start, stop, wait_for  # noqa: E402 - it is not in a package

IMAGE = ROOT / "examples" / "rocket.jpg"
WARM_VIDEOS = 5


def engine_seconds(model: str, device: str) -> list[float]:
    """Measure `generate` of one image with several seeds, after one video to warm up; a loaded model."""
    import kinema

    pipeline = kinema.load(model, device=device)
    seconds = []
    for seed in range(WARM_VIDEOS + 1):
        started = time.perf_counter()
        kinema.generate(IMAGE, model=pipeline, seed=seed)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def server_jobs(model: str, device: str, workers: int, jobs: int) -> dict[str, Any]:
    """Measure a server: seconds until it is ready, of the first job alone, and of `jobs` jobs queued together."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        # `models` only offers a folder to clients; a name of the catalog is offered anyway.
        server = start(Path(folder) / "data", work=None, model=model, models=model, device=device, workers=workers)
        try:
            ready = time.perf_counter() - started
            with server.client() as client, IMAGE.open("rb") as file:
                image = file.read()

                def submit(seed: int) -> str:
                    fields = {"model": model, "seed": str(seed), "prompt": "rate"}
                    response = client.post("/v1/videos", data=fields, files={"input_reference": ("a.jpg", image)})
                    response.raise_for_status()
                    return str(response.json()["id"])

                first = wait_for(client, submit(1000), 3600)
                for worker in range(workers):  # each has had a job
                    wait_for(client, submit(2000 + worker), 3600)
                ids = [submit(seed) for seed in range(jobs)]
                videos = [wait_for(client, video, 3600 * jobs) for video in ids]
                assert all(video["status"] == "completed" for video in videos), videos
                times = job_times(server)
                after_kill = seconds_after_kill(server, client, submit)
        finally:
            stop(server)
    began, ended = times[first["id"]]
    begins, ends = zip(*(times[video] for video in ids), strict=True)
    return {
        "ready_seconds": ready,
        "first_job_seconds": ended - began,
        "seconds": max(ends) - min(begins),
        "seconds_between_completions": [round(b - a, 3) for a, b in pairwise(sorted(ends))],
        "seconds_from_worker_kill_to_completion": after_kill,
    }


def job_times(server: Server) -> dict[str, tuple[float, float]]:
    """Return the times of start and completion of each job; the API rounds them to seconds."""
    with closing(sqlite3.connect(server.data / "jobs.sqlite3")) as database:
        rows = database.execute("SELECT id, started_at, completed_at FROM kinema_jobs")
        return {name: (began, ended) for name, began, ended in rows}


def seconds_after_kill(server: Server, client: httpx.Client, submit: Callable[[int], str]) -> float:
    """Kill the workers while one of them denoises a job; return the seconds until another has completed it."""
    video = submit(3000)
    while client.get(f"/v1/videos/{video}").json()["status"] == "queued":
        time.sleep(0.03)
    time.sleep(1)
    for process in child_processes("kinema.jobs.worker_process", of=server.process.pid):
        process.kill()
    killed = time.perf_counter()
    assert wait_for(client, video, 3600)["status"] == "completed"
    return time.perf_counter() - killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="catalog name or folder")
    parser.add_argument("--device", default="auto", help="device of the models")
    parser.add_argument("--workers", type=int, default=1, help="workers of the server, one per GPU")
    parser.add_argument("--jobs", type=int, default=24, help="jobs to queue")
    parser.add_argument("--note", help="text to store with the results")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--engine-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine_only:
        print(json.dumps(engine_seconds(args.model, args.device)))
        return
    results = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
        "load_before": os.getloadavg()[0],
        "model": Path(args.model).name,
        "workers": args.workers,
        "jobs": args.jobs,
        "note": args.note,
    }
    command = [sys.executable, __file__, "--engine-only", "--model", args.model, "--device", args.device]
    measured = subprocess.run(command, check=True, capture_output=True, text=True)
    results["engine_seconds"] = json.loads(measured.stdout.splitlines()[-1])
    median = statistics.median(results["engine_seconds"])
    results |= server_jobs(args.model, args.device, args.workers, args.jobs)
    results["seconds_per_job"] = results["seconds"] / args.jobs * args.workers
    results["share_of_engine_rate"] = median / results["seconds_per_job"]
    print(json.dumps(results, indent=2))
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
