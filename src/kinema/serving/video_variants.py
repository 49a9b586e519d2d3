"""Files derived from a finished video on request: a thumbnail and a contact sheet of all frames."""

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
# CPU time: a video may have hundreds of frames.
CPU_SECONDS = 120
_FILES = {
    "video": ("video.mp4", "video/mp4"),
    "thumbnail": ("thumbnail.webp", "image/webp"),
    "spritesheet": ("spritesheet.jpg", "image/jpeg"),
}


class VideoVariants:
    """Creates the variants of a server's videos; concurrent requests for the same one create it once."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[tuple[str, Variant], asyncio.Lock] = WeakValueDictionary()

    async def file(
        self, queue: Queue, images: ImageService, request: Request | None, job_id: str, variant: Variant
    ) -> tuple[Path, str]:
        """Return the file and its media type; create it at the first request. It is deleted with the job.

        Raises:
            JobNotFound, JobUnfinished: as `Queue.result`.
            ServerBusy, ClientGone: as `BoundedPool.run`.
        """
        name, media_type = _FILES[variant]
        async with self._locks.setdefault((job_id, variant), asyncio.Lock()):
            path, exists = await asyncio.to_thread(_find, queue, job_id, name)
            if not exists:
                await images.images.run(lambda gone: _create(images, path, gone), request)
            return path, media_type


def _find(queue: Queue, job_id: str, name: str) -> tuple[Path, bool]:
    path = queue.result(job_id).with_name(name)
    return path, path.exists()


def _create(images: ImageService, path: Path, gone: Callable[[], bool]) -> None:
    video = path.with_name(_FILES["video"][0])
    function = thumbnail if path.name == _FILES["thumbnail"][0] else contact_sheet
    try:
        write_atomically(path, images.process.run(function, video, gone=gone, cpu_seconds=CPU_SECONDS))
    except (OSError, KinemaError):
        if video.exists():
            raise
        raise JobNotFound(f"video {path.parent.name!r} was deleted") from None
