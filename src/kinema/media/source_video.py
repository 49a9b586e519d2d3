"""A video by Kinema that is extended, with what its recipe says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kinema.errors import InvalidRequest, RecipeError
from kinema.media.encoding_steps import KeptWatermark
from kinema.media.video import Video
from kinema.media.video_reader import read_frames, read_recipe
from kinema.recipe import Extension

if TYPE_CHECKING:
    import os

    from kinema.media.video_writer import Frames
    from kinema.recipe import Recipe


@dataclass(frozen=True, slots=True, eq=False)
class SourceVideo:
    """A video to extend: its frames, uint8 [n, height, width, 3], its recipe, and its name in messages."""

    frames: Frames
    recipe: Recipe
    label: str
    sha256: str
    """Over the size and the pixels of all frames, so that it does not depend on the file."""
    watermark: KeptWatermark | None
    """The invisible watermark of its frames, or of the first of them if it is an unsaved, extended video."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of frames that the model made before each earlier extension, and of all."""
        return lengths_of(self.recipe)

    @property
    def own_frames(self) -> Frames:
        """The frames that the model made, without those between; they may be upscaled."""
        return self.frames[:: self.recipe.request.interpolate]

    @property
    def extension(self) -> Extension:
        """What the recipe of the extended video says about this one."""
        return Extension(frames_sha256=self.sha256, lengths=self.lengths)


def lengths_of(recipe: Recipe) -> tuple[int, ...]:
    """Return the number of frames that the model made before each extension of a video, and of all."""
    return (*(recipe.extension.lengths if recipe.extension else ()), recipe.request.num_frames)


def open_source_video(video: Video | str | os.PathLike[str]) -> SourceVideo:
    """Return a video to extend, from a `Video` or a file; a path may begin with `~`.

    Raises:
        VideoError: there is no such video, or it can't be read.
        RecipeError: it has no recipe, or other frames than its recipe says.
        InvalidRequest: it is a loop, ends at a last image, or plays backward.
    """
    if isinstance(video, Video):
        return _checked(video.frames, video.recipe, "the video", video.kept_watermark)
    path = Path(video).expanduser()
    recipe = read_recipe(path)
    check_extendable(recipe, str(path))
    frames, _ = read_frames(path)
    payload = recipe.encoding.watermark
    return _checked(frames, recipe, str(path), None if payload is None else KeptWatermark(payload, len(frames)))


def _checked(frames: Frames, recipe: Recipe, label: str, watermark: KeptWatermark | None) -> SourceVideo:
    check_extendable(recipe, label)
    count, height, width, _ = frames.shape
    if count != (expected := recipe.request.output_frames):
        raise RecipeError(
            f"{label} has {count} frames, but its recipe says {expected}; use the file as Kinema wrote it"
        )
    digest = hashlib.sha256(f"{count}x{width}x{height}:".encode())
    digest.update(np.ascontiguousarray(frames).data)
    return SourceVideo(frames, recipe, label, digest.hexdigest(), watermark)


def check_extendable(recipe: Recipe, label: str) -> None:
    """Check that a video has an end from which it can go on.

    Raises:
        InvalidRequest: it has none.
    """
    if recipe.request.loop:
        raise InvalidRequest(f"{label} is a loop, which ends where it begins; extend a video without loop", "video")
    if recipe.last_image_sha256 is not None:
        raise InvalidRequest(f"{label} ends at a last image; generate a new video from that image instead", "video")
    if recipe.encoding.boomerang:
        raise InvalidRequest(f"{label} plays forward and backward; extend the video without boomerang", "video")
