"""What is made from a finished video when someone asks for it: a thumbnail, and a sheet with all its frames."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Literal
from weakref import WeakValueDictionary

from kinema.errors import JobNotFound, KinemaError
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


class Variants:
    """What one server makes of its videos: of those who ask for the same at once, the first has it made."""

    def __init__(self) -> None:
        self._making: WeakValueDictionary[tuple[str, Variant], asyncio.Lock] = WeakValueDictionary()

    async def file(self, queue: Queue, job_id: str, variant: Variant) -> tuple[Path, str]:
        """The file and its media type; it is made at the first asking, and goes when the job does.

        Raises:
            JobNotFound, JobUnfinished: as `Queue.result`.
        """
        async with self._making.setdefault((job_id, variant), asyncio.Lock()):
            return await asyncio.to_thread(_file, queue, job_id, variant)


def _file(queue: Queue, job_id: str, variant: Variant) -> tuple[Path, str]:
    video = queue.result(job_id)
    name, kind = _FILES[variant]
    path = video.with_name(name)
    if not path.exists():
        try:
            write(path, _made(video, variant))
        except (OSError, KinemaError):
            if video.exists():
                raise
            raise JobNotFound(f"there is no video of {job_id} any more; it was deleted") from None
    return path, kind


def _made(video: Path, variant: Variant) -> bytes:
    from PIL import Image

    from kinema.media.clip import Clip
    from kinema.media.reading import read_first_frame, read_frames, read_recipe

    data = io.BytesIO()
    if variant == "thumbnail":
        image = Image.fromarray(read_first_frame(video))
        image.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH))
        image.save(data, "WEBP", quality=85)
    else:
        frames, fps = read_frames(video)
        Clip(frames, fps, read_recipe(video)).contact_sheet().save(data, "JPEG", quality=85)
    return data.getvalue()
