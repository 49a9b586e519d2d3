"""Encode a finished mp4 again with another quality or as a boomerang."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinema.errors import RecipeError
from kinema.frame_rate import rate_number
from kinema.media.video_encoders import encoder_for
from kinema.media.video_reader import each_frame, probe, read_recipe
from kinema.media.video_writer import recipe_text
from kinema.recipe import FileEncoding, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kinema.media.video_encoders import Frame

# Memory for decoded frames on the way back; the file is decoded once more for each such chunk.
CHUNK_BYTES = 128_000_000


def reencode(video: Path, crf: int | None, *, boomerang: bool) -> bytes:
    """Return an mp4 with the frames of a stored mp4, whose recipe says so. `crf` None is the default quality.

    Raises:
        InvalidRequest: `crf` is out of range.
        VideoError: the video can't be decoded.
    """
    info = probe(video)
    encoder = encoder_for(".mp4", rate_number(info.fps), crf)
    for frame in each_frame(video):
        encoder.add(frame)
    if boomerang:
        for frame in _backward(video, info.frames, info.width * info.height * 3):
            encoder.add(frame)
    recipe = _recipe(video)
    stored = recipe.encoding if recipe else FileEncoding()  # its frames have the watermark
    changes = {"crf": crf, "boomerang": boomerang, "from_stored": True}
    encoding = stored.model_copy(update=changes)
    data = encoder.result(recipe_text(recipe and recipe.model_copy(update={"encoding": encoding})))
    assert isinstance(data, bytes)
    return data


def _recipe(video: Path) -> Recipe | None:
    """Return the recipe, or None for the video of a version whose recipes this one does not read."""
    try:
        return read_recipe(video)
    except RecipeError:
        return None


def _backward(video: Path, count: int, frame_bytes: int) -> Iterator[Frame]:
    """Yield the frames between the last and the first, backward, with few of them in memory."""
    size = max(1, CHUNK_BYTES // frame_bytes)
    end = count - 1
    while end > 1:
        start = max(1, end - size)
        chunk = [frame for i, frame in zip(range(end), each_frame(video), strict=False) if i >= start]
        yield from reversed(chunk)
        end = start
