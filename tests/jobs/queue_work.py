"""Stub work for tests of the queue, without a model and torch. Each output is bytes that follow from the request alone.

The request's model selects a fault:
- "refused" raises ContentRefused in each decode;
- "large" makes a video of 6.4 MB, which is uploaded to a bucket in parts;
- "killed" kills the worker process in each decode, "killed once" only in the first;
- "hangs" hangs in the first denoise; "memory" raises InsufficientMemory; "defect" raises RuntimeError;
- "blocked" denoises until the file "released" exists, so that no test depends on timing; "blocked decode" decodes until
  then, and "blocked save" saves its video then; "blocked memory" waits for the file and then raises InsufficientMemory.
"""

import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from kinema.errors import ContentRefused, InsufficientMemory
from kinema.jobs.job import DeviceState
from kinema.steps import Step

BLOCKED_STAGES = {"blocked": "denoise", "blocked decode": "decode"}


@dataclass(frozen=True)
class Bytes:
    data: bytes

    def save(self, path):
        Path(path).write_bytes(self.data)


class BlockedBytes(Bytes):
    def save(self, path):
        super().save(path)
        while not log_file("released").exists():
            time.sleep(0.01)


def expected_video(request, image):
    """Return the video that an undisturbed run creates."""
    return output(b"video", request, output(b"latents", request, image))


def expected_image(request):
    """Return the image that is generated for a prompt."""
    return output(b"image", request, request.prompt.encode())


def output(part, request, source):
    times = 100_000 if (part, request.model) == (b"video", "large") else 1000
    return hashlib.sha512(part + request.seed.to_bytes(8, "big") + source).digest() * times


def read(file, output):
    """Return the content of the file of a part, or of its output if that is not saved yet."""
    return file.read_bytes() if output is None else output.data


class Work:
    """`motion_bucket_id` is the milliseconds of a step, `noise_aug_strength` the seconds to load a model."""

    def __init__(self):
        self.loaded = None

    def __call__(self, task, previous):
        request = task.request
        if self.loaded != request.model:
            time.sleep(request.noise_aug_strength)
            self.loaded = request.model
        log_task(task)
        while request.model == "blocked memory" and not log_file("released").exists():
            time.sleep(0.01)
        if "memory" in request.model:
            raise InsufficientMemory("64 GB are needed and 1 is free; ask for fewer frames")
        if request.model == "defect":
            raise RuntimeError("a bug")
        match task.part:
            case "image":
                yield from steps(request, "text_to_image", 3)
                return Bytes(expected_image(request))
            case "latents":
                yield from steps(request, "encode", 2)
                yield from steps(request, "denoise", request.num_inference_steps)
                images = (image.read_bytes() for image in (task.image, task.last_image) if image is not None)
                return Bytes(output(b"latents", request, b"".join(images)))
            case "video":
                while "killed" in request.model and not task.latents.exists():
                    time.sleep(0.01)  # a crash before that also repeats the latents
                yield from steps(request, "decode", 3)
                if request.model == "refused":
                    raise ContentRefused("the video is refused; use another image")
                video = output(b"video", request, read(task.latents, previous))
                return BlockedBytes(video) if request.model == "blocked save" else Bytes(video)

    def start(self, report):
        pass

    @staticmethod
    def import_libraries():
        pass

    def prepare(self, _task):
        pass

    def preview(self, _state):
        return b"a picture"


class WithDevice(Work):
    """Reports a group of GPUs, and the model of the latest task."""

    def start(self, _report):
        self.state = DeviceState("cuda:2", 2, "default")
        return self.state

    def __call__(self, task, previous):
        self.state.model = task.request.model
        return (yield from super().__call__(task, previous))


class DeviceOfProcess(Work):
    """Reports the device that the process was given."""

    def start(self, _report):
        return DeviceState(os.environ["KINEMA_DEVICE"], 0)


class SlowStart(Work):
    """Starts until the file "released" exists."""

    def start(self, report):
        report("loading a large model")
        while not log_file("released").exists():
            time.sleep(0.01)


def steps(request, stage, total):
    for step in range(1, total + 1):
        time.sleep(request.motion_bucket_id / 1000)
        if request.model == "killed" and stage == "decode":
            os.kill(os.getpid(), signal.SIGKILL)
        if request.model == "killed once" and stage == "decode" and is_first_time("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if request.model == "hangs" and stage == "denoise" and is_first_time("hung"):
            time.sleep(3600)
        while BLOCKED_STAGES.get(request.model) == stage and step == 3 and not log_file("released").exists():
            yield Step(stage, step, total)
            time.sleep(0.01)
        yield Step(stage, step, total)


def is_first_time(event):
    path = log_file(event)
    if path.exists():
        return False
    path.touch()
    return True


def log_file(name):
    return Path(os.environ["STUB_TASK_LOG"]) / name


def log_task(task):
    """Append a task to the log, which `queue_helpers.started_tasks` reads."""
    with log_file("started").open("a") as file:
        file.write(f"{task.job} {task.part} {task.request.model} {os.getpid()}\n")
