"""The server's stub work, which also logs each task: job, part and seed, one line each in the file BATCH_TASK_LOG."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import server_work

from kinema.errors import InsufficientMemory


def log(task, event):
    with Path(os.environ["BATCH_TASK_LOG"]).open("a") as file:
        watermark = os.environ.get("KINEMA_WATERMARK", "unset")
        file.write(f"{task.job} {task.part} {event} watermark={watermark}\n")


class LoggedWork(server_work.Work):
    """Real videos of 64×64."""

    def __call__(self, task, previous):
        log(task, "started")
        output = yield from super().__call__(task, previous)
        log(task, "finished")
        return output


@dataclass(frozen=True)
class Bytes:
    data: bytes

    def save(self, path):
        Path(path).write_bytes(self.data)


class QuickWork(LoggedWork):
    """Takes 10 ms and writes bytes that follow from image and seed."""

    def __call__(self, task, previous):
        log(task, "started")
        yield from server_work.run_steps(task.request, "denoise", 1)
        if task.part == "latents":
            time.sleep(0.01)
            return Bytes(task.image.read_bytes()[-100:] + str(task.request.seed).encode())
        log(task, "finished")
        return Bytes(b"video " + (task.latents.read_bytes() if previous is None else previous.data))


class FailsOnce(LoggedWork):
    """Fails in the first run of each image."""

    def __call__(self, task, previous):
        marker = Path(os.environ["BATCH_TASK_LOG"]).with_name(f"failed-{Path(task.image).name}")
        if not marker.exists():
            marker.touch()
            raise InsufficientMemory("64 GB are needed and 1 is free; ask for fewer frames")
        return (yield from super().__call__(task, previous))
