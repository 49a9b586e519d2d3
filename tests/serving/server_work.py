"""Work for tests of the server, without a model and torch; it writes a real video that depends on the request.

`motion_bucket_id` is the duration of a step in milliseconds; a `model` named after a fault raises it.
"""

import hashlib
import io
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kinema.errors import HubUnreachable, InsufficientMemory, ModelCorrupt
from kinema.media.source_video import open_source_video
from kinema.media.video import Video
from kinema.recipe import ModelIdentity, Recipe
from kinema.steps import Step

FAULTS = "memory,defect,killed,weights,damaged"


@dataclass(frozen=True)
class Bytes:
    data: bytes

    def save(self, path):
        Path(path).write_bytes(self.data)


def read(file, output):
    """Return the content of the file of a part, or of its output if that is not saved yet."""
    return file.read_bytes() if output is None else output.data


class Work:
    def __call__(self, task, previous):
        request = task.request
        if request.model == "memory":
            raise InsufficientMemory("64 GB are needed and 1 is free; ask for fewer frames")
        if request.model == "weights":
            raise HubUnreachable("the hub does not answer; try again when it does")
        if request.model == "damaged":
            raise ModelCorrupt("unet/config.json is not a JSON object; download the model again")
        if request.model == "defect":
            raise RuntimeError("a bug")
        match task.part:
            case "image":
                yield from run_steps(request, "text_to_image", 2)
                data = io.BytesIO()
                Image.fromarray(make_frames(request, request.prompt.encode(), 1)[0]).save(data, "PNG")
                return Bytes(data.getvalue())
            case "latents":
                yield from run_steps(request, "encode", 2)
                yield from run_steps(request, "denoise", request.num_inference_steps)
                inputs = (task.image, task.last_image, task.source_video)
                return Bytes(b"".join(file.read_bytes() for file in inputs if file is not None))
            case "video":
                yield from run_steps(request, "decode", 2)
                if task.source_video is not None:
                    return extended(task, previous)
                return Video(
                    make_frames(request, read(task.latents, previous), request.num_frames),
                    request.frame_rate,
                    make_recipe(request),
                )

    def start(self, report):
        pass

    @staticmethod
    def import_libraries():
        pass

    def prepare(self, _task):
        pass

    def preview(self, _state):
        return b"\xff\xd8 an image"


def extended(task, previous):
    source = open_source_video(task.source_video)
    new = make_frames(task.request, read(task.latents, previous), task.request.num_frames - source.lengths[-1])
    recipe = make_recipe(task.request).model_copy(update={"extension": source.extension})
    return Video(np.concatenate([source.frames, new]), task.request.frame_rate, recipe)


class NoWork(Work):
    """Write the smallest video."""

    def __call__(self, task, _previous):
        yield from run_steps(task.request, "decode", task.request.num_inference_steps)
        return Bytes(b"\0\0\0\x08ftyp")


class LongWork(Work):
    """Do the same, 45 seconds slower."""

    def __call__(self, task, previous):
        if task.part == "latents":
            for step in range(1, 46):
                time.sleep(1)
                yield Step("encode", step, 45)
        return (yield from super().__call__(task, previous))


def run_steps(request, stage, total):
    for step in range(1, total + 1):
        time.sleep(request.motion_bucket_id / 1000)
        if request.model == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        yield Step(stage, step, total)


def make_frames(request, source, count):
    """Return frames of 64×64 for any requested size: they are quick to encode."""
    digest = hashlib.sha256(request.seed.to_bytes(8, "big") + source).digest()
    first = np.frombuffer(digest[:12], np.uint8).reshape(2, 2, 3).repeat(32, 0).repeat(32, 1)
    return np.stack([np.roll(first, i, 1) for i in range(count)])


def make_recipe(request):
    return Recipe(
        kinema="0",
        request=request,
        image_sha256="0" * 64,
        model=ModelIdentity(name=request.model, revision=None, weights_sha256="0" * 64),
        device="cpu",
        dtype="float32",
        memory_plan="resident",
        decode_chunk_size=1,
        versions={},
    )
