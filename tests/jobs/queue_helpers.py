"""What the queue's tests share: a request that is quick to serve, and ways to wait for it."""

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from kinema.values import VideoRequest

IMAGE = b"a still, as it came"
# Seconds after which a test gives up: no measure of anything, so that tests pass on a machine that is busy.
PATIENCE = 180
# It takes steps of denoising until it is let go.
HELD = {"model": "held"}


def request(**changes):
    """Quick work: 5 steps of 2 ms to denoise."""
    quick = {"num_inference_steps": 5, "motion_bucket_id": 2, "noise_aug_strength": 0}
    return VideoRequest(**{"seed": 7, "model": "a", **quick, **changes})


def let_go(notes):
    """Have the jobs that are held go on."""
    (Path(notes) / "go").touch()


def finished(queue, job):
    """The job when it is finished."""
    told = []
    watching = threading.Thread(target=lambda: told.extend(queue.watch(job.id)), daemon=True)
    watching.start()
    watching.join(PATIENCE)
    assert not watching.is_alive(), f"{told[-1:]} is not finished after {PATIENCE} s"
    assert told[-1].finished
    return told[-1]


def until(condition):
    """Wait for something that takes a moment."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


def begun(notes):
    """(job, part, model, process) of everything the stand-in began."""
    path = Path(notes) / "begun"
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []


class Server:
    """The process that runs the jobs, as it is killed and started again."""

    def __init__(self, settings):
        self.arguments = [
            str(settings.data_dir),
            *([settings.database_url.get_secret_value()] if settings.database_url else []),
        ]
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("queue_server.py")), *self.arguments]
        )

    def workers(self):
        """Its processes that take tasks: they have imported the work by then."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children()
        return []

    def kill(self):
        self.process.kill()
        self.process.wait()
