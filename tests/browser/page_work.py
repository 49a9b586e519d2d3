"""A stand-in for the model: steps, synthetic frames, and a real mp4 of them.

While the file $PAGE_WORK_HOLD exists, denoising stays at its second step, so that a test can look at a running job.
"""

import io
import json
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from kinema.media.video import Video
from kinema.recipe import ModelIdentity, Recipe
from kinema.steps import Step


class Saved:
    def __init__(self, save):
        self.save = save


class Work:
    def __call__(self, task, _previous):
        self.request = request = task.request
        match task.part:
            case "image":
                yield from steps("text_to_image", 4)
                return Saved(frame(request, 0).save)
            case "latents":
                yield from steps("encode", 2)
                yield from steps("denoise", request.num_inference_steps)
                return Saved(lambda path: path.write_text(json.dumps(request.seed)))
            case "video":
                yield from steps("decode", 2)
                frames = np.stack([np.asarray(frame(request, i)) for i in range(request.num_frames)])
                return Video(frames, request.frame_rate, recipe(request))

    def start(self, report):
        pass

    @staticmethod
    def import_libraries():
        pass

    def prepare(self, _task):
        pass

    def preview(self, state):
        return jpeg(frame(self.request, getattr(state, "step", 0)))


def steps(stage, total):
    hold = Path(os.environ["PAGE_WORK_HOLD"])
    for step in range(1, total + 1):
        time.sleep(0.02)
        yield Step(stage, step, total)
        while (stage, step) == ("denoise", 2) and hold.exists():
            time.sleep(0.1)
            yield Step(stage, step, total)  # so that the job can be cancelled


def frame(request, shift):
    """Draw a frame whose colour depends on the seed; `shift` moves it."""
    y, x = np.mgrid[: request.height, : request.width]
    wave = np.sin((x + 6 * shift) / 40 + request.seed % 7) * 14
    sky = np.stack([140 + wave + 60 * y / request.height, 120 + y / 3, 170 - wave], -1)
    sky[y > request.height * 0.72 + wave] = (38, 52, 56)
    return Image.fromarray(sky.clip(0, 255).astype(np.uint8))


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return buffer.getvalue()


def recipe(request):
    return Recipe(
        kinema="0", request=request, image_sha256="0" * 64, device="cpu", dtype="float32", memory_plan="resident",
        model=ModelIdentity(name=request.model, revision=None, weights_sha256="0" * 64), decode_chunk_size=1,
        versions={},
    )  # fmt: skip
