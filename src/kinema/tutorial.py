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
from kinema.media.clip import Clip
from kinema.media.video import check_target
from kinema.values import PAINTING, RANDOM_SEED

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from kinema.media.still import Source
    from kinema.models.loading import Models
    from kinema.models.painters import Painter

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

    models: Models
    image_model: str | Path | Painter | None = None
    """What draws the still of a sentence, as `kinema.generate` takes it; None leaves it to Kinema."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def generate_video(
        self, image_url: Source, video_file: str | os.PathLike[str], seed: int = 42, **settings: Any
    ) -> Clip:
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
        clip = self.make(image_url, **{"num_frames": frames, **settings, "seed": seed})
        clip.save(video_file)
        return clip

    def generate_text2video(
        self,
        prompt: str,
        video_file: str | os.PathLike[str],
        seed: int = RANDOM_SEED,
        *,
        guidance_scale: float | None = None,
        **settings: Any,
    ) -> Clip:
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
        clip = self.make(prompt=prompt, **{"num_frames": frames, **settings, **own, "seed": seed})
        _show(clip.still)
        clip.save(video_file)
        return clip

    def make(self, still: Source | None = None, **settings: Any) -> Clip:
        """`kinema.generate` with the lesson's models and settings beneath those that are given.

        Progress, cautions and the seed are printed.
        """
        beneath = {"num_inference_steps": STEPS, "decode_chunk_size": DECODE_CHUNK, **self.models.defaults}
        own = {"image_model": self.image_model, **self.settings}
        if settings.get("prompt") is None:
            own = {name: value for name, value in own.items() if name not in PAINTING}
        asked = {**beneath, **own, **settings}
        clip = None
        with warnings.catch_warnings(record=True) as cautions:
            warnings.filterwarnings("always", category=library.KinemaWarning)
            for result in library.stream(still, model=self.models, **asked):
                while cautions:  # told as sentences; a warning would show a beginner this file's lines
                    _tell(f"note: {cautions.pop(0).message}", end="\n")
                if isinstance(result, Clip):
                    clip = result
                else:
                    _tell(f"{result.stage} {result.step}/{result.total}")
        assert clip is not None, "the engine ends with a clip"
        _tell(f"seed {clip.seed}", end="\n")
        return clip


def load(
    model: str | Path | None = None,
    *,
    image_model: str | Path | Painter | None = None,
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
        models = library.load(model, device=device, dtype=dtype)
    return Lesson(models, image_model, settings)


def generate_video(image_url: Source, video_file: str | os.PathLike[str], seed: int = 42, **settings: Any) -> Clip:
    """`Lesson.generate_video` with the model that Kinema takes when none is named, loaded for this one call."""
    return load().generate_video(image_url, video_file, seed, **settings)


def generate_text2video(
    prompt: str,
    video_file: str | os.PathLike[str],
    seed: int = RANDOM_SEED,
    *,
    guidance_scale: float | None = None,
    **settings: Any,
) -> Clip:
    """`Lesson.generate_text2video` with the models that Kinema takes when none is named, loaded for this one call."""
    return load().generate_text2video(prompt, video_file, seed, guidance_scale=guidance_scale, **settings)


def motion_by_seed(clips: Sequence[Clip]) -> Image.Image:
    """Clips of one still on a sheet, a row for each motion bucket and a column for each seed, at most 2048 pixels wide.

    A tile has the clip's last frame, and beside it what differs from the first, four times as bright.

    Raises:
        InvalidRequest: where there is no clip.
    """
    if not clips:
        raise InvalidRequest("there are no clips to compare; give at least one", "clips")
    placed = {(clip.recipe.request.motion_bucket_id, clip.seed): clip for clip in clips}
    motions = sorted({motion for motion, _ in placed})
    seeds = sorted({seed for _, seed in placed})
    _, height, width, _ = clips[0].frames.shape
    scale = min(1.0, SHEET_WIDTH / (2 * width * len(seeds)))
    w, h = math.floor(2 * width * scale), round(height * scale)
    sheet = Image.new("RGB", (w * len(seeds), h * len(motions)))
    for (motion, seed), clip in placed.items():
        tile, change = _last_and_change(clip)
        corner = seeds.index(seed) * w, motions.index(motion) * h
        sheet.paste(tile.resize((w, h), Image.Resampling.LANCZOS), corner)
        label = f"motion {motion}, seed {seed}: change {change:.1f}/255"
        ImageDraw.Draw(sheet).text((corner[0] + 4, corner[1] + 4), label, "white", stroke_width=1, stroke_fill="black")
    return sheet


def _last_and_change(clip: Clip) -> tuple[Image.Image, float]:
    """The last frame, and in grey its brightened difference from the first; and that difference's mean, 0 to 255."""
    difference = np.abs(clip.frames[-1].astype(np.float32) - clip.frames[0]).mean(axis=2, keepdims=True)
    brightened = (difference * BRIGHTER).clip(0, 255).astype(np.uint8).repeat(3, axis=2)
    return Image.fromarray(np.hstack([clip.frames[-1], brightened])), float(difference.mean())


def _tell(text: str, end: str = "") -> None:
    """Put `text` in the place of the line before."""
    print(f"\r{text:<20}", end=end, flush=True)  # noqa: T201 - a notebook shows what is printed


def _show(image: Image.Image | None) -> None:
    """Show a picture beneath the notebook's cell; outside of one, do nothing."""
    if image is not None and "ipykernel" in sys.modules:
        from IPython.display import display

        display(image)  # type: ignore[no-untyped-call]
