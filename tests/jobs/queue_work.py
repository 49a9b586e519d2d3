"""Work for tests of the queue: no model, no torch; its video is a file of bytes that follow from the request alone.

Faults are asked for by the request: its model names them, so that they reach the worker as any setting does. The model
"held" is none: it takes steps of denoising until the file "go" is there, so that no test depends on how long one takes;
"held memory" waits for it, too, and then fails.
"""

import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from kinema.errors import InsufficientMemory
from kinema.jobs.job import Preview
from kinema.values import Step


@dataclass(frozen=True)
class Bytes:
    data: bytes

    def save(self, path):
        Path(path).write_bytes(self.data)


def expected(request, image):
    """The video's bytes, as an undisturbed run makes them."""
    return draw(b"video", request, draw(b"latents", request, image))


def drawn(request):
    return draw(b"image", request, request.prompt.encode())


def draw(what, request, source):
    return hashlib.sha512(what + request.seed.to_bytes(8, "big") + source).digest() * 1000


class Work:
    """`motion_bucket_id` is the milliseconds of a step, `noise_aug_strength` the seconds of each model's loading."""

    def __init__(self):
        self.loaded = None

    def __call__(self, task):
        request = task.request
        if self.loaded != request.model:
            time.sleep(request.noise_aug_strength)
            self.loaded = request.model
        note(task)
        while request.model == "held memory" and not noted("go").exists():
            time.sleep(0.01)
        if "memory" in request.model:
            raise InsufficientMemory("64 GB are needed and 1 is free; ask for fewer frames")
        if request.model == "defect":
            raise RuntimeError("a bug")
        match task.part:
            case "image":
                yield from steps(request, "text_to_image", 3)
                yield Bytes(drawn(request))
            case "latents":
                yield from steps(request, "encode", 2)
                yield from steps(request, "denoise", request.num_inference_steps)
                yield Bytes(draw(b"latents", request, task.image.read_bytes()))
            case "video":
                yield from steps(request, "decode", 3)
                yield Bytes(draw(b"video", request, task.latents.read_bytes()))


def steps(request, stage, total):
    for step in range(1, total + 1):
        time.sleep(request.motion_bucket_id / 1000)
        if request.model == "killed" and stage == "decode":
            os.kill(os.getpid(), signal.SIGKILL)
        if request.model == "killed once" and stage == "decode" and first_time("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if request.model == "hangs" and stage == "denoise" and first_time("hung"):
            time.sleep(3600)
        while request.model == "held" and stage == "denoise" and step == 3 and not noted("go").exists():
            yield Step(stage, step, total)
            yield Preview(lambda: b"a picture")
            time.sleep(0.01)
        yield Step(stage, step, total)
        yield Preview(lambda: b"a picture")


def first_time(what):
    path = noted(what)
    if path.exists():
        return False
    path.touch()
    return True


def noted(what):
    return Path(os.environ["STANDIN_NOTES"]) / what


def note(task):
    """What was begun, in order: tests read what was done again, and what was not."""
    with noted("begun").open("a") as notes:
        notes.write(f"{task.job} {task.part} {task.request.model} {os.getpid()}\n")
