"""Helpers of the queue's tests: a fast request, a killable server process, and functions that wait."""

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from kinema.values import VideoRequest

IMAGE = b"bytes of an uploaded image"
# Seconds after which a test fails. Far longer than any wait, so that tests pass on a busy machine.
TIMEOUT = 180
# A job that denoises until `release_jobs` is called.
BLOCKED = {"model": "blocked"}


def request(**changes):
    """Return a fast request: 5 denoising steps of 2 ms."""
    fast = {"num_inference_steps": 5, "motion_bucket_id": 2, "noise_aug_strength": 0}
    return VideoRequest(**{"seed": 7, "model": "a", **fast, **changes})


def release_jobs(task_log):
    """Let blocked jobs continue."""
    (Path(task_log) / "released").touch()


def wait_finished(queue, job):
    """Wait until the job is finished, and return it."""
    states = []
    thread = threading.Thread(target=lambda: states.extend(queue.subscribe(job.id)), daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive(), f"{states[-1:]} is not finished after {TIMEOUT} s"
    assert states[-1].finished
    return states[-1]


def stored_files(folder):
    """Return the files of jobs and images that are in a data folder or store."""
    return sorted(path.name for part in ("jobs", "images") for path in (folder / part).rglob("*") if path.is_file())


def wait_until(condition):
    """Wait until the condition is true."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"the condition is still false after {TIMEOUT} s"
        time.sleep(0.01)


def started_tasks(task_log):
    """Return (job, part, model, process id) of each task that the stub work started, in order."""
    path = Path(task_log) / "started"
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []


class Server:
    """A process that runs the jobs of a queue. Tests kill and restart it."""

    def __init__(self, settings):
        self.arguments = [
            str(settings.data_dir),
            *([settings.database_url.get_secret_value()] if settings.database_url else []),
            *([settings.store] if settings.store else []),
        ]
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("queue_server.py")), *self.arguments]
        )

    def workers(self):
        """Return its worker processes."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children()
        return []

    def kill(self):
        self.process.kill()
        self.process.wait()
