"""Compare the server's rate of videos with the engine's own, on this machine and in one run:

    python bench/server_rate.py --jobs 6 --out bench/results/server-rate-here.json
    python bench/svd_xt.py /tmp/svd-xt
    python bench/server_rate.py --model /tmp/svd-xt --jobs 24 --note "random weights"
    python bench/server_rate.py --model /tmp/svd-xt --jobs 24 --workers 2 --ray --note "random weights"

The engine's own rate is that of `generate` without a file, in a process of its own: one video to warm up, then the
median of several. The server's rate is the number of jobs by the seconds from the first claim to the last completion,
with all jobs queued before. With several workers, the engine's rate counts once for each; on several GPUs it is also
measured on all at the same time (`engine_seconds_together`), since they are not equally fast and share power and
memory. `--ray` then measures the server a second time, with workers on a Ray cluster: a head on this machine that the
script starts and stops. Close other programs first.

A record shows where the seconds go: `stages` are medians of what the queue measured for each stage of a job;
`seconds_between_videos` is the median time between two completions of a worker without them;
`first_seconds_outside_stages` is what the first queued job took from its claim to its completion without them: its
start, and its file after the last frame. `after_kill` has the seconds after the kill at which the worker's state
changed: when its death is noticed, when its replacement loads the model (after the imports, unless it was a spare
process), compiles, is ready, and when the job is completed.
"""

import argparse
import datetime
import json
import os
import re
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

from kinema.jobs.worker_devices import count_gpus  # noqa: E402 - it follows the line above

IMAGE = ROOT / "examples" / "rocket.jpg"
WARM_VIDEOS = 5


def measure_engine(model: str, device: str) -> dict[str, Any]:
    """Measure `generate` of one image with several seeds, after one video to warm up; a loaded model."""
    import kinema
    from kinema.benchmark.measure import machine, versions

    pipeline = kinema.load(model, device=device)
    seconds = []
    for seed in range(WARM_VIDEOS + 1):
        started = time.perf_counter()
        kinema.generate(IMAGE, model=pipeline, seed=seed)
        seconds.append(time.perf_counter() - started)
    return {"machine": machine(pipeline.device), "versions": versions(), "seconds": seconds[1:]}


def engine_processes(args: argparse.Namespace, devices: list[str]) -> list[dict[str, Any]]:
    """Measure the engine on several devices at the same time, each in a process of its own."""
    command = [sys.executable, __file__, "--engine-only", "--model", args.model, "--device"]
    processes = [subprocess.Popen([*command, device], stdout=subprocess.PIPE, text=True) for device in devices]
    outputs = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes), "the engine could not be measured"
    return [json.loads(output.splitlines()[-1]) for output in outputs]


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
                after_kill = None
                if not args.skip_kill:
                    time.sleep(20 if ray is None and count_gpus() else 0)  # the spare worker starts meanwhile
                    after_kill = seconds_after_kill(server, None if ray is None else ray[1], client, submit)
        finally:
            stop(server)
    began, ended, _ = times[first["id"]]
    begins, ends, stages = zip(*(times[video] for video in ids), strict=True)
    medians = {name: statistics.median(each[name] for each in stages) for name in stages[0]}
    first_began, first_ended, first_stages = min((times[video] for video in ids), key=lambda each: each[1])
    in_order = sorted(ends)
    between = [later - earlier for earlier, later in zip(in_order, in_order[args.workers :], strict=False)]
    return {
        "ready_seconds": ready,
        "first_job_seconds": ended - began,
        "seconds": max(ends) - min(begins),
        "seconds_per_job": (max(ends) - min(begins)) / args.jobs * args.workers,
        "seconds_between_completions": [round(b - a, 3) for a, b in pairwise(in_order)],
        "stages": {name: round(seconds, 3) for name, seconds in medians.items()},
        "seconds_between_videos": statistics.median(between) - sum(medians.values()) if between else None,
        "first_stages": {name: round(seconds, 3) for name, seconds in first_stages.items()},
        "first_seconds_outside_stages": first_ended - first_began - sum(first_stages.values()),
        "seconds_from_worker_kill_to_completion": after_kill and after_kill["completed"],
        "after_kill": after_kill,
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


def job_times(server: Server) -> dict[str, tuple[float, float, dict[str, float]]]:
    """Return the times of start and completion of each job, which the API rounds, and seconds of its stages."""
    with closing(sqlite3.connect(server.data / "jobs.sqlite3")) as database:
        rows = database.execute("SELECT id, started_at, completed_at, stage_durations FROM kinema_jobs")
        return {name: (began, ended, json.loads(stages or "{}")) for name, began, ended, stages in rows}


def seconds_after_kill(
    server: Server, ray: int | None, client: httpx.Client, submit: Callable[[int], str]
) -> dict[str, float]:
    """Kill the worker process that denoises a job; return the seconds of each new state until another has completed it.

    `ray`: process of a Ray head, all of whose worker processes are killed; None for local workers.
    """
    video = submit(3000)
    while client.get(f"/v1/videos/{video}").json()["status"] == "queued":
        time.sleep(0.03)
    time.sleep(1)
    workers = child_processes("kinema.jobs.worker_process", of=ray or server.process.pid)
    place = next(each["place"] for each in client.get("/v1/workers").json()["data"] if each["status"] == "busy")
    if ray is None:
        ready = re.findall(r"worker (\d+) on (\S+) is ready", server.log.read_text())
        workers = [process for process in workers if (str(process.pid), place) in ready]
    assert workers, "no worker process was found"
    for process in workers:
        process.kill()
    killed, seen, seconds = time.perf_counter(), "busy", {}
    while client.get(f"/v1/videos/{video}").json()["status"] != "completed":
        states = [each for each in client.get("/v1/workers").json()["data"] if each["place"] in (place, None)]
        state = states[0]["problem"] or states[0]["status"] if states else "gone"
        if state != seen:
            seen = state
            seconds.setdefault(state, round(time.perf_counter() - killed, 2))
        assert time.perf_counter() - killed < 3600, f"{video} was not completed"
        time.sleep(0.02)
    return seconds | {"completed": round(time.perf_counter() - killed, 2)}


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
        print(json.dumps(measure_engine(args.model, args.device)))
        return
    load = os.getloadavg()[0]
    (engine,) = engine_processes(args, [args.device])
    results = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": engine["machine"],
        "versions": engine["versions"],
        "load_before": load,
        "model": Path(args.model).name,
        "workers": args.workers,
        "jobs": args.jobs,
        "note": args.note,
        "engine_seconds": engine["seconds"],
    }
    median = statistics.median(results["engine_seconds"])
    gpus = [f"cuda:{i}" for i in range(args.workers)]
    if args.device == "auto" and 1 < args.workers <= count_gpus():
        results["engine_seconds_together"] = [each["seconds"] for each in engine_processes(args, gpus)]
    results["local"] = server_jobs(args)
    results["local"]["share_of_engine_rate"] = median / results["local"]["seconds_per_job"]
    if "engine_seconds_together" in results:
        rate = sum(1 / statistics.median(seconds) for seconds in results["engine_seconds_together"])
        results["local"]["share_of_engine_rate_together"] = args.jobs / results["local"]["seconds"] / rate
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
