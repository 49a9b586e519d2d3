"""Compare the server's rate of videos with the engine's own, on this machine and in one run:

    python bench/server_rate.py --jobs 6 --out bench/results/server-rate-here.json
    python bench/svd_xt.py /tmp/svd-xt
    python bench/server_rate.py --model /tmp/svd-xt --jobs 24 --note "random weights"
    python bench/server_rate.py --model /tmp/svd-xt --jobs 24 --workers 2 --ray --note "random weights"

The engine's own rate is that of `generate` without a file, in a process of its own: one video to warm up, then the
median of several. The server's rate is the number of jobs by the seconds from the first claim to the last completion,
with all jobs queued before. With several workers, the engine's rate counts once for each. `--ray` then measures the
server a second time, with workers on a Ray cluster: a head on this machine that the script starts and stops.
Close other programs first.
"""

import argparse
import datetime
import json
import os
import platform
import secrets
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "serving"))

from server_process import Server, child_processes, free_port, start, stop, wait_for  # noqa: E402 - it is not in a package

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


def server_jobs(args: argparse.Namespace, ray: tuple[str, int] | None = None) -> dict[str, Any]:
    """Measure a server: seconds until it is ready, of the first job alone, and of all jobs queued together.

    `ray`: address and process of a Ray head for the workers; None for local workers.
    """
    settings = {} if ray is None else {"ray_address": ray[0]}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        # `models` only offers a folder to clients; a name of the catalog is offered anyway.
        server = start(
            Path(folder) / "data",
            work=None,
            model=args.model,
            models=args.model,
            device=args.device,
            workers=args.workers,
            **settings,
        )
        try:
            with server.client() as client, IMAGE.open("rb") as file:
                image = file.read()
                wait_until_idle(server, client, args.workers)
                ready = time.perf_counter() - started

                def submit(seed: int) -> str:
                    fields = {"model": args.model, "seed": str(seed), "prompt": "rate"}
                    response = client.post("/v1/videos", data=fields, files={"input_reference": ("a.jpg", image)})
                    response.raise_for_status()
                    return str(response.json()["id"])

                first = wait_for(client, submit(1000), 3600)
                # One for each worker, at the same time: the idle worker gets the next job.
                for video in [submit(2000 + worker) for worker in range(args.workers)]:
                    wait_for(client, video, 3600)
                wait_until_idle(server, client, args.workers)
                ids = [submit(seed) for seed in range(args.jobs)]
                videos = [wait_for(client, video, 3600 * args.jobs) for video in ids]
                assert all(video["status"] == "completed" for video in videos), videos
                times = job_times(server)
                wait_until_idle(server, client, args.workers)
                parent = server.process.pid if ray is None else ray[1]
                after_kill = None if args.skip_kill else seconds_after_kill(parent, client, submit)
        finally:
            stop(server)
    began, ended = times[first["id"]]
    begins, ends = zip(*(times[video] for video in ids), strict=True)
    return {
        "ready_seconds": ready,
        "first_job_seconds": ended - began,
        "seconds": max(ends) - min(begins),
        "seconds_per_job": (max(ends) - min(begins)) / args.jobs * args.workers,
        "seconds_between_completions": [round(b - a, 3) for a, b in pairwise(sorted(ends))],
        "seconds_from_worker_kill_to_completion": after_kill,
    }


def wait_until_idle(server: Server, client: httpx.Client, workers: int) -> None:
    """Wait until the server has this many workers, and none of them a job."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        state = client.get("/v1/workers").json()
        if [worker["status"] for worker in state["data"]] == ["idle"] * workers:
            return
        time.sleep(0.03)
    raise AssertionError(f"expected {workers} idle workers, got {state}\n{server.log.read_text()[-4000:]}")


@contextmanager
def ray_head(gpus: int | None) -> Iterator[tuple[str, int]]:
    """Start a Ray head on this machine; yield its address and the process whose descendants run the jobs.

    `gpus`: number of logical GPUs; None for the machine's GPUs.
    """
    address, port = "127.0.0.1", free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # short: Ray puts sockets there
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        command += ["--include-dashboard=false", "--include-log-monitor=false", "--num-cpus=1"]
        command += [f"--node-ip-address={address}", f"--port={port}", f"--temp-dir={folder}"]
        command += ["--object-store-memory=200000000"] + ([] if gpus is None else [f"--num-gpus={gpus}"])
        output = Path(folder) / "ray-start.log"
        with output.open("wb") as file:
            head = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while "Ray runtime started" not in output.read_text():
                if head.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"the Ray head did not start:\n{output.read_text()[-4000:]}")
                time.sleep(0.05)
            yield f"{address}:{port}", head.pid
        finally:
            started = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
            head.terminate()
            for process in psutil.wait_procs(started, timeout=20)[1]:
                process.kill()
            head.wait()


def job_times(server: Server) -> dict[str, tuple[float, float]]:
    """Return the times of start and completion of each job; the API rounds them to seconds."""
    with closing(sqlite3.connect(server.data / "jobs.sqlite3")) as database:
        rows = database.execute("SELECT id, started_at, completed_at FROM kinema_jobs")
        return {name: (began, ended) for name, began, ended in rows}


def seconds_after_kill(parent: int, client: httpx.Client, submit: Callable[[int], str]) -> float:
    """Kill the worker processes while one of them denoises a job; return the seconds until another has completed it.

    `parent`: the process whose descendants they are.
    """
    video = submit(3000)
    while client.get(f"/v1/videos/{video}").json()["status"] == "queued":
        time.sleep(0.03)
    time.sleep(1)
    workers = child_processes("kinema.jobs.worker_process", of=parent)
    assert workers, "no worker process was found"
    for process in workers:
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
    parser.add_argument("--ray", action="store_true", help="measure also with workers on a local Ray head")
    parser.add_argument("--ray-gpus", type=int, help="logical GPUs of the Ray head, to try --ray without GPUs")
    parser.add_argument("--skip-kill", action="store_true", help="do not measure how long a killed worker delays a job")
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
    results["local"] = server_jobs(args)
    results["local"]["share_of_engine_rate"] = median / results["local"]["seconds_per_job"]
    report(results, args.out)
    if args.ray:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # of head and server
        with ray_head(args.ray_gpus) as head:
            results["ray"] = server_jobs(args, head)
        results["ray"]["share_of_engine_rate"] = median / results["ray"]["seconds_per_job"]
        results["ray"]["share_of_local_rate"] = results["local"]["seconds"] / results["ray"]["seconds"]
        report(results, args.out)


def report(results: dict[str, Any], out: Path | None) -> None:
    """Print the results and write them to the file."""
    print(json.dumps(results, indent=2), flush=True)
    if out:
        out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
