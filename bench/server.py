"""Measure the server with stub work: latency of submissions, job starts and lists, and cost of event streams.

    python bench/server.py --out bench/results/server-here.json

It starts its own servers on localhost, with the stub work of tests/serving. Close other programs first.
"""

import argparse
import asyncio
import datetime
import io
import itertools
import json
import os
import platform
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "tests" / "serving"))

from server_process import Server, start, stop, wait_for

CLIENTS, SUBMISSIONS = 20, 200
QUEUED, SUBSCRIBERS = 1000, 100
FAST = {"motion_bucket_id": "1", "num_inference_steps": "1", "num_frames": "2"}
SLOW = {"motion_bucket_id": "1000", "num_inference_steps": "200", "num_frames": "2"}


def png_image() -> bytes:
    data = io.BytesIO()
    Image.linear_gradient("L").resize((288, 160)).convert("RGB").save(data, "PNG")
    return data.getvalue()


def percentile(values: list[float], percent: float) -> float:
    return sorted(values)[min(len(values) - 1, int(percent / 100 * len(values)))]


async def submissions(server: Server) -> dict[str, float]:
    """Measure milliseconds per submission of an image by 20 clients: twice per second each, and without pauses."""
    paced = await _measure_submissions(server, pause=0.5)
    flat_out = await _measure_submissions(server, pause=0)
    return paced | {f"flat_out_{name}": value for name, value in flat_out.items()}


async def _measure_submissions(server: Server, pause: float) -> dict[str, float]:
    image, durations = png_image(), []

    async def client(count: int) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            await asyncio.sleep(random.uniform(0, pause))
            for _ in range(count):
                await asyncio.sleep(pause)
                started = time.perf_counter()
                response = await http.post("/v1/videos", data=SLOW, files={"input_reference": ("a.png", image)})
                durations.append(1000 * (time.perf_counter() - started))
                response.raise_for_status()

    await client(5)  # warm up: open connections
    durations.clear()
    await asyncio.gather(*(client(SUBMISSIONS // CLIENTS) for _ in range(CLIENTS)))
    return {"p50_ms": percentile(durations, 50), "p99_ms": percentile(durations, 99), "count": len(durations)}


def starts(server: Server) -> dict[str, float]:
    """Measure seconds from the end of a job to the start of the next one, from the table of jobs."""
    with server.client() as client:
        responses = [client.post("/v1/videos", data=FAST, files={"image": ("a.png", png_image())}) for _ in range(12)]
        ids = [response.json()["id"] for response in responses]
        wait_for(client, ids[-1])
        metrics = client.get("/metrics").text
    gaps = []
    with sqlite3.connect(server.data / "jobs.sqlite3") as jobs:
        rows = jobs.execute("select started_at, completed_at from kinema_jobs order by seq").fetchall()
    for (_, before), (after, _) in itertools.pairwise(rows):
        gaps.append(after - before)
    assert "kinema_jobs_waiting" in metrics
    return {"median_s": statistics.median(gaps), "max_s": max(gaps), "count": len(gaps)}


def listing(server: Server) -> dict[str, float]:
    """Measure milliseconds of a page of the job list with 1,000 queued jobs, and memory before and after."""
    api = server.api_process()
    with server.client() as client:
        waiting = len(client.get("/v1/videos?limit=100").json()["data"])
        before = api.memory_info().rss
        submission = {"data": SLOW, "files": {"image": ("a.png", png_image())}}
        while float(_metric(client, "kinema_jobs_waiting")) < QUEUED:
            client.post("/v1/videos", **submission).raise_for_status()
        durations = []
        for _ in range(40):
            started = time.perf_counter()
            client.get("/v1/videos?limit=20").raise_for_status()
            durations.append(1000 * (time.perf_counter() - started))
        hundred = time.perf_counter()
        client.get("/v1/videos?limit=100").raise_for_status()
        hundred = 1000 * (time.perf_counter() - hundred)
    return {
        "listed_before": waiting,
        "p50_ms": percentile(durations, 50),
        "p99_ms": percentile(durations, 99),
        "page_of_100_ms": hundred,
        "memory_before_mb": before / 1e6,
        "memory_after_mb": api.memory_info().rss / 1e6,
    }


def _metric(client: httpx.Client, name: str) -> str:
    lines = client.get("/metrics").text.splitlines()
    return next(line.split()[-1] for line in lines if line.startswith(f"{name} "))


async def event_streams(server: Server) -> dict[str, float]:
    """Measure percent of one core used during a running job: without event streams, and with a hundred."""
    api = server.api_process()
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        fields = SLOW | {"motion_bucket_id": "100"}
        response = await http.post("/v1/videos", data=fields, files={"image": ("a.png", png_image())})
        job = response.json()["id"]
        for _ in range(100):
            if (await http.get(f"/v1/videos/{job}")).json()["status"] == "in_progress":
                break
            await asyncio.sleep(0.05)
        alone = await cpu(api, 5)
        events = 0

        async def count_events() -> None:
            nonlocal events
            async with (
                httpx.AsyncClient(base_url=server.url, timeout=60) as client,
                client.stream("GET", f"/v1/videos/{job}/events") as stream,
            ):
                async for line in stream.aiter_lines():
                    events += line.startswith("event: ")

        tasks = [asyncio.create_task(count_events()) for _ in range(SUBSCRIBERS)]
        await asyncio.sleep(2)
        events = 0
        watched = await cpu(api, 8)
        events_per_second = events / 8
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await http.post(f"/v1/videos/{job}/cancel")
    return {"alone_percent": alone, "watched_percent": watched, "events_per_second": events_per_second}


async def cpu(process: psutil.Process, seconds: float) -> float:
    before = process.cpu_times()
    await asyncio.sleep(seconds)
    after = process.cpu_times()
    return 100 * (after.user + after.system - before.user - before.system) / seconds


def measure(task: str) -> object:
    """Run one benchmark on a new server."""
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder) / "data", queue_size=100_000)
        try:
            match task:
                case "submissions":
                    return asyncio.run(submissions(server))
                case "starts":
                    return starts(server)
                case "listing":
                    return listing(server)
                case _:
                    return asyncio.run(event_streams(server))
        finally:
            stop(server)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--only", choices=["submissions", "starts", "listing", "watching"])
    args = parser.parse_args()
    tasks = [args.only] if args.only else ["submissions", "starts", "listing", "watching"]
    results = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
        "load_before": os.getloadavg()[0],
    }
    for task in tasks:
        results[task] = measure(task)
        print(task, json.dumps(results[task]), flush=True)
    results["load_after"] = os.getloadavg()[0]
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
