"""Helpers for the tutorial notebook: turn an image or a prompt into a video file that the notebook plays.

    from kinema import tutorial
    lesson = tutorial.load("pocket")  # on a GPU: tutorial.load("svd", image_model="sd-2.1-base")
    lesson.generate_video("rocket.png", "rocket.mp4")
    lesson.generate_text2video("a photograph of an astronaut riding a horse", "horse.mp4")

The module has no state: each `Lesson` has the models that it was loaded with.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kinema import library
from kinema.errors import InvalidRequest
from kinema.media.motion_sheet import MotionSheet
from kinema.media.video_writer import check_target
from kinema.steps import drive
from kinema.values import RANDOM_SEED, TEXT_TO_IMAGE_FIELDS

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from PIL import Image

    from kinema.media.image import ImageSource
    from kinema.media.video import Video
    from kinema.models.image_pipeline import ImagePipeline
    from kinema.models.loading import VideoPipeline
    from kinema.steps import Step

# The tutorial's parameters, for short and fast videos. A model's own defaults, as of `pocket`, take precedence.
STEPS = 10
DECODE_CHUNK = 2
FRAMES_FROM_IMAGE = 10
FRAMES_FROM_TEXT = 12


@dataclass(frozen=True, eq=False)
class Lesson:
    """The models of a lesson, and the parameters of all its videos."""

    pipeline: VideoPipeline
    image_model: str | Path | ImagePipeline | None = None
    """The text-to-image model, as for `kinema.generate`; None: the default."""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def generate_video(
        self, image_url: ImageSource, video_file: str | os.PathLike[str], seed: int = 42, **parameters: Any
    ) -> Video:
        """Turn an image into a video of 10 frames, save it to `video_file` and print its seed.

        Args:
            image_url: URL, or any other image that `kinema.generate` accepts.
            video_file: Path ending in .mp4, .webm, .gif or .webp.
            seed: 0 to 2⁵³−1; −1 for a random seed.
            **parameters: Other fields of `VideoRequest`, which override those of the lesson.

        Raises:
            KinemaError: the input is invalid or the generation failed.
        """
        check_target(video_file)
        frames = self.parameters.get("num_frames", FRAMES_FROM_IMAGE)
        video = self.make(image_url, **{"num_frames": frames, **parameters, "seed": seed})
        video.save(video_file)
        return video

    def generate_text2video(
        self,
        prompt: str,
        video_file: str | os.PathLike[str],
        seed: int = RANDOM_SEED,
        *,
        guidance_scale: float | None = None,
        **parameters: Any,
    ) -> Video:
        """Generate an image from a prompt, show it, and turn it into a video of 12 frames as `generate_video` does.

        Args:
            prompt: Description of the image.
            video_file: Path ending in .mp4, .webm, .gif or .webp.
            seed: 0 to 2⁵³−1; −1 for a random seed.
            guidance_scale: Guidance scale of the text-to-image model (`image_guidance_scale`), not of the video
                (`max_guidance_scale`). None: the model's default.
            **parameters: Other fields of `VideoRequest`; num_frames and num_inference_steps apply to the video.

        Raises:
            KinemaError: the input is invalid or the generation failed.
        """
        check_target(video_file)
        frames = self.parameters.get("num_frames", FRAMES_FROM_TEXT)
        guidance = {} if guidance_scale is None else {"image_guidance_scale": guidance_scale}
        video = self.make(prompt=prompt, **{"num_frames": frames, **parameters, **guidance, "seed": seed})
        _show(video.image)
        video.save(video_file)
        return video

    def make(self, image: ImageSource | None = None, **parameters: Any) -> Video:
        """Call `kinema.generate` with the lesson's models and parameters; `parameters` override those of the lesson.

        Prints progress, warnings and the seed.
        """
        # Without width and height, which would keep the size from following the image.
        defaults = {"num_inference_steps": STEPS, "decode_chunk_size": DECODE_CHUNK, **self.pipeline.defaults}
        defaults = {name: value for name, value in defaults.items() if name not in ("width", "height")}
        own = {"image_model": self.image_model, **self.parameters}
        if parameters.get("prompt") is None:
            own = {name: value for name, value in own.items() if name not in TEXT_TO_IMAGE_FIELDS}
        merged = {**defaults, **own, **parameters}
        prompt, loading = merged.pop("prompt", None), library.Loading(self.pipeline, merged.pop("image_model", None))

        def show(step: Step) -> None:
            while recorded:  # print only the message: a Python warning would also show this file's source line
                _print_over(f"note: {recorded.pop(0).message}", end="\n")
            _print_over(f"{step.stage} {step.step}/{step.total}")

        with warnings.catch_warnings(record=True) as recorded:
            warnings.filterwarnings("always", category=library.KinemaWarning)
            _ignore_missing_widgets()
            video = drive(library.start(image, prompt, loading, **merged), show)
        _print_over(f"seed {video.seed}", end="\n")
        return video


def load(
    model: str | Path | None = None,
    *,
    image_model: str | Path | ImagePipeline | None = None,
    device: str | None = None,
    dtype: str | None = None,
    **parameters: Any,
) -> Lesson:
    """Load the video model and return the lesson.

    Args:
        model: As for `kinema.load`.
        image_model: Text-to-image model, as for `kinema.generate`.
        device: As for `kinema.load`.
        dtype: As for `kinema.load`.
        **parameters: Fields of `VideoRequest` for all videos of the lesson.

    Raises:
        ModelError: the model is unavailable or invalid.
        InvalidRequest: device or dtype is not available.
    """
    with warnings.catch_warnings():
        _ignore_missing_widgets()
        pipeline = library.load(model, device=device, dtype=dtype)
    return Lesson(pipeline, image_model, parameters)


def _ignore_missing_widgets() -> None:
    """Ignore tqdm's warning on import about notebook widgets, which Kinema does not use."""
    warnings.filterwarnings("ignore", "IProgress not found")


def generate_video(
    image_url: ImageSource, video_file: str | os.PathLike[str], seed: int = 42, **parameters: Any
) -> Video:
    """Load the default model and call `Lesson.generate_video`."""
    return load().generate_video(image_url, video_file, seed, **parameters)


def generate_text2video(
    prompt: str,
    video_file: str | os.PathLike[str],
    seed: int = RANDOM_SEED,
    *,
    guidance_scale: float | None = None,
    **parameters: Any,
) -> Video:
    """Load the default models and call `Lesson.generate_text2video`."""
    return load().generate_text2video(prompt, video_file, seed, guidance_scale=guidance_scale, **parameters)


def motion_by_seed(videos: Sequence[Video]) -> Image.Image:
    """Return a sheet of videos of one image: a row per motion bucket, a column per seed, at most 2048 pixels wide.

    Each tile shows the last frame and, beside it, its difference from the first frame, four times brighter.

    Raises:
        InvalidRequest: `videos` is empty.
    """
    if not videos:
        raise InvalidRequest("there are no videos to compare; pass at least one", "videos")
    requests = [video.recipe.request for video in videos]
    motions = sorted({request.motion_bucket_id for request in requests})
    sheet = MotionSheet(motions, sorted({request.seed for request in requests}))
    for video in videos:
        sheet.add(video.recipe.request.motion_bucket_id, video.seed, video.frames)
    assert sheet.image is not None
    return sheet.image


def _print_over(text: str, end: str = "") -> None:
    """Print `text` over the current line."""
    print(f"\r{text:<20}", end=end, flush=True)  # noqa: T201 - the notebook's output


def _show(image: Image.Image | None) -> None:
    """Show an image below the notebook's cell; do nothing outside notebooks."""
    if image is not None and "ipykernel" in sys.modules:
        from IPython.display import display

        display(image)  # type: ignore[no-untyped-call]
