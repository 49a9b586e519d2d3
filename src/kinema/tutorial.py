"""A first lesson's helpers: a picture or a sentence goes in, and a video that plays in the notebook comes out.

    from kinema import tutorial
    lesson = tutorial.load("pocket")  # on a GPU: tutorial.load("svd", image_model="sd-2.1-base")
    lesson.generate_video("rocket.png", "rocket.mp4")
    lesson.generate_text2video("a photograph of an astronaut riding a horse", "horse.mp4")

A lesson is a plain value: nothing is kept in this module, and each has the models that it was loaded with.
"""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from kinema import library
from kinema.errors import InvalidRequest
from kinema.media.video import Video
from kinema.media.video_writer import check_target
from kinema.values import RANDOM_SEED, TEXT_TO_IMAGE_FIELDS

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from kinema.media.image import Source
    from kinema.models.image_pipeline import ImagePipeline
    from kinema.models.loading import VideoPipeline

# What the lesson asks of SVD: short and quick. A model that names defaults of its own, as the pocket does, keeps them.
STEPS = 10
DECODE_CHUNK = 2
FRAMES_FROM_IMAGE = 10
FRAMES_FROM_TEXT = 12

SHEET_WIDTH = 2048
BRIGHTER = 4


@dataclass(frozen=True, eq=False)
class Lesson:
    """The models that a lesson works with, and the settings that hold for all of its videos."""

    pipeline: VideoPipeline
    image_model: str | Path | ImagePipeline | None = None
    """What draws the still of a sentence, as `kinema.generate` takes it; None leaves it to Kinema."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def generate_video(
        self, image_url: Source, video_file: str | os.PathLike[str], seed: int = 42, **settings: Any
    ) -> Video:
        """A video of 10 frames from a picture: saved as `video_file`, its seed printed, played by the notebook.

        Args:
            image_url: An address, or whatever else `kinema.generate` takes for a still.
            video_file: .mp4, .webm, .gif or .webp.
            seed: 0 to 2⁵³−1; −1 draws one.
            **settings: Others of `VideoRequest`, above those of the lesson: num_frames, num_inference_steps, ….

        Raises:
            KinemaError: one of its kinds; the message says what to do.
        """
        check_target(video_file)
        frames = self.settings.get("num_frames", FRAMES_FROM_IMAGE)
        video = self.make(image_url, **{"num_frames": frames, **settings, "seed": seed})
        video.save(video_file)
        return video

    def generate_text2video(
        self,
        prompt: str,
        video_file: str | os.PathLike[str],
        seed: int = RANDOM_SEED,
        *,
        guidance_scale: float | None = None,
        **settings: Any,
    ) -> Video:
        """An image drawn from a sentence, shown, and a video of 12 frames from that; else as `generate_video`.

        Args:
            prompt: What the image shows.
            video_file: .mp4, .webm, .gif or .webp.
            seed: 0 to 2⁵³−1; −1 draws one.
            guidance_scale: How strictly the image follows the prompt, as in the tutorial (`image_guidance_scale`);
                that of the video is `max_guidance_scale`. None is the text-to-image model's own.
            **settings: Others of `VideoRequest`; num_frames and num_inference_steps are those of the video.

        Raises:
            KinemaError: one of its kinds; the message says what to do.
        """
        check_target(video_file)
        frames = self.settings.get("num_frames", FRAMES_FROM_TEXT)
        own = {} if guidance_scale is None else {"image_guidance_scale": guidance_scale}
        video = self.make(prompt=prompt, **{"num_frames": frames, **settings, **own, "seed": seed})
        _show(video.image)
        video.save(video_file)
        return video

    def make(self, image: Source | None = None, **settings: Any) -> Video:
        """`kinema.generate` with the lesson's models and settings beneath those that are given.

        Progress, cautions and the seed are printed.
        """
        beneath = {"num_inference_steps": STEPS, "decode_chunk_size": DECODE_CHUNK, **self.pipeline.defaults}
        own = {"image_model": self.image_model, **self.settings}
        if settings.get("prompt") is None:
            own = {name: value for name, value in own.items() if name not in TEXT_TO_IMAGE_FIELDS}
        asked = {**beneath, **own, **settings}
        video = None
        with warnings.catch_warnings(record=True) as cautions:
            warnings.filterwarnings("always", category=library.KinemaWarning)
            for result in library.stream(image, model=self.pipeline, **asked):
                while cautions:  # told as sentences; a warning would show a beginner this file's lines
                    _tell(f"note: {cautions.pop(0).message}", end="\n")
                if isinstance(result, Video):
                    video = result
                else:
                    _tell(f"{result.stage} {result.step}/{result.total}")
        assert video is not None, "the engine ends with a clip"
        _tell(f"seed {video.seed}", end="\n")
        return video


def load(
    model: str | Path | None = None,
    *,
    image_model: str | Path | ImagePipeline | None = None,
    device: str | None = None,
    dtype: str | None = None,
    **settings: Any,
) -> Lesson:
    """A lesson with its video model in memory.

    Args:
        model: As for `kinema.load`.
        image_model: What draws stills from sentences, as for `kinema.generate`.
        device: As for `kinema.load`.
        dtype: As for `kinema.load`.
        **settings: Those of `VideoRequest`, for all of the lesson's videos, and for the stills that are drawn.

    Raises:
        KinemaError: one of its kinds; the message says what to do.
    """
    with warnings.catch_warnings():
        # A library looks for widgets to draw its bars with, which Kinema does not use.
        warnings.filterwarnings("ignore", "IProgress not found")
        pipeline = library.load(model, device=device, dtype=dtype)
    return Lesson(pipeline, image_model, settings)


def generate_video(image_url: Source, video_file: str | os.PathLike[str], seed: int = 42, **settings: Any) -> Video:
    """`Lesson.generate_video` with the model that Kinema takes when none is named, loaded for this one call."""
    return load().generate_video(image_url, video_file, seed, **settings)


def generate_text2video(
    prompt: str,
    video_file: str | os.PathLike[str],
    seed: int = RANDOM_SEED,
    *,
    guidance_scale: float | None = None,
    **settings: Any,
) -> Video:
    """`Lesson.generate_text2video` with the models that Kinema takes when none is named, loaded for this one call."""
    return load().generate_text2video(prompt, video_file, seed, guidance_scale=guidance_scale, **settings)


def motion_by_seed(videos: Sequence[Video]) -> Image.Image:
    """Clips of one still on a sheet, a row for each motion bucket and a column for each seed, at most 2048 pixels wide.

    A tile has the clip's last frame, and beside it what differs from the first, four times as bright.

    Raises:
        InvalidRequest: where there is no clip.
    """
    if not videos:
        raise InvalidRequest("there are no clips to compare; give at least one", "clips")
    placed = {(video.recipe.request.motion_bucket_id, video.seed): video for video in videos}
    motions = sorted({motion for motion, _ in placed})
    seeds = sorted({seed for _, seed in placed})
    _, height, width, _ = videos[0].frames.shape
    scale = min(1.0, SHEET_WIDTH / (2 * width * len(seeds)))
    w, h = math.floor(2 * width * scale), round(height * scale)
    sheet = Image.new("RGB", (w * len(seeds), h * len(motions)))
    for (motion, seed), video in placed.items():
        tile, change = _last_and_change(video)
        corner = seeds.index(seed) * w, motions.index(motion) * h
        sheet.paste(tile.resize((w, h), Image.Resampling.LANCZOS), corner)
        label = f"motion {motion}, seed {seed}: change {change:.1f}/255"
        ImageDraw.Draw(sheet).text((corner[0] + 4, corner[1] + 4), label, "white", stroke_width=1, stroke_fill="black")
    return sheet


def _last_and_change(video: Video) -> tuple[Image.Image, float]:
    """The last frame, and in grey its brightened difference from the first; and that difference's mean, 0 to 255."""
    difference = np.abs(video.frames[-1].astype(np.float32) - video.frames[0]).mean(axis=2, keepdims=True)
    brightened = (difference * BRIGHTER).clip(0, 255).astype(np.uint8).repeat(3, axis=2)
    return Image.fromarray(np.hstack([video.frames[-1], brightened])), float(difference.mean())


def _tell(text: str, end: str = "") -> None:
    """Put `text` in the place of the line before."""
    print(f"\r{text:<20}", end=end, flush=True)  # noqa: T201 - a notebook shows what is printed


def _show(image: Image.Image | None) -> None:
    """Show a picture beneath the notebook's cell; outside of one, do nothing."""
    if image is not None and "ipykernel" in sys.modules:
        from IPython.display import display

        display(image)  # type: ignore[no-untyped-call]
