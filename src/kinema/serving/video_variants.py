"""What is made from a finished video when someone asks for it: a thumbnail, and a sheet with all its frames."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal
from weakref import WeakValueDictionary

from kinema.errors import JobNotFound, KinemaError
from kinema.jobs.job_files import write_atomically
from kinema.serving.image_tasks import contact_sheet, thumbnail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.requests import Request

    from kinema.jobs import Queue
    from kinema.serving.image_service import ImageService

Variant = Literal["video", "thumbnail", "spritesheet"]
# Of a core: a video may have hundreds of frames.
MAKE_SECONDS = 120
_FILES = {
    "video": ("video.mp4", "video/mp4"),
    "thumbnail": ("thumbnail.webp", "image/webp"),
    "spritesheet": ("spritesheet.jpg", "image/jpeg"),
}


class VideoVariants:
    """What one server makes of its videos: of those who ask for the same at once, the first has it made."""

    def __init__(self) -> None:
        self._making: WeakValueDictionary[tuple[str, Variant], asyncio.Lock] = WeakValueDictionary()

    async def file(
        self, queue: Queue, images: ImageService, request: Request | None, job_id: str, variant: Variant
    ) -> tuple[Path, str]:
        """The file and its media type; it is made at the first asking, and goes when the job does.

        Raises:
            JobNotFound, JobUnfinished: as `Queue.result`.
            ServerBusy, ClientGone: as `BoundedPool.run`.
        """
        name, kind = _FILES[variant]
        async with self._making.setdefault((job_id, variant), asyncio.Lock()):
            path, there = await asyncio.to_thread(_look, queue, job_id, name)
            if not there:
                await images.images.run(lambda gone: _make(images, path, gone), request)
            return path, kind


def _look(queue: Queue, job_id: str, name: str) -> tuple[Path, bool]:
    path = queue.result(job_id).with_name(name)
    return path, path.exists()


def _make(images: ImageService, path: Path, gone: Callable[[], bool]) -> None:
    video = path.with_name(_FILES["video"][0])
    make = thumbnail if path.name == _FILES["thumbnail"][0] else contact_sheet
    try:
        write_atomically(path, images.process.run(make, video, gone=gone, cpu_seconds=MAKE_SECONDS))
    except (OSError, KinemaError):
        if video.exists():
            raise
        raise JobNotFound(f"there is no video of {path.parent.name} any more; it was deleted") from None
