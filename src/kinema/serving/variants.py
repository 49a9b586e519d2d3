"""What is made from a finished video when someone asks for it: a thumbnail, and a sheet with all its frames."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

from kinema.jobs.files import write

if TYPE_CHECKING:
    from pathlib import Path

    from kinema.jobs import Queue

Variant = Literal["video", "thumbnail", "spritesheet"]
THUMBNAIL_WIDTH = 512
_FILES = {
    "video": ("video.mp4", "video/mp4"),
    "thumbnail": ("thumbnail.webp", "image/webp"),
    "spritesheet": ("spritesheet.jpg", "image/jpeg"),
}


def variant_of(queue: Queue, job_id: str, variant: Variant) -> tuple[Path, str]:
    """The file and its media type; it is made at the first asking, and goes when the job does.

    Raises:
        JobNotFound, JobUnfinished: as `Queue.result`.
    """
    video = queue.result(job_id)
    name, kind = _FILES[variant]
    path = video.with_name(name)
    if not path.exists():
        write(path, _made(video, variant))
    return path, kind


def _made(video: Path, variant: Variant) -> bytes:
    from PIL import Image

    from kinema.media.clip import Clip
    from kinema.media.reading import read_frames, read_recipe

    frames, fps = read_frames(video)
    data = io.BytesIO()
    if variant == "thumbnail":
        image = Image.fromarray(frames[0])
        image.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH))
        image.save(data, "WEBP", quality=85)
    else:
        Clip(frames, fps, read_recipe(video)).contact_sheet().save(data, "JPEG", quality=85)
    return data.getvalue()
