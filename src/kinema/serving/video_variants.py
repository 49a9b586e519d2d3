"""Files derived from a finished video on request: a thumbnail, a contact sheet, and other encodings."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal
from weakref import WeakValueDictionary

from kinema.errors import InvalidImage, InvalidRequest, JobNotFound, KinemaError
from kinema.jobs.job_files import SIGNED_PREFIX, write_atomically
from kinema.media.video_encoders import CRF
from kinema.messages import Message
from kinema.recipe import FileEncoding
from kinema.serving.image_tasks import contact_sheet, encoded_again, thumbnail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.requests import Request

    from kinema.jobs import Queue
    from kinema.serving.image_service import ImageService

Variant = Literal["video", "thumbnail", "spritesheet"]
# CPU time: a video may have hundreds of frames.
CPU_SECONDS = 120
# Kept per video besides the stored one; the one that was created first is deleted.
MAX_ENCODINGS = 4
STORED_CRF = CRF[".mp4"][1]
MAX_CRF = CRF[".mp4"][2]
_STORED = FileEncoding()
_FILES = {
    "video": ("video.mp4", "video/mp4"),
    "thumbnail": ("thumbnail.webp", "image/webp"),
    "spritesheet": ("spritesheet.jpg", "image/jpeg"),
}


def requested_encoding(variant: Variant, crf: int | None, *, boomerang: bool) -> FileEncoding:
    """Return the encoding that a download asks for; that of the stored video is the default.

    Raises:
        InvalidRequest: the variant is not the video.
    """
    if variant != "video" and (boomerang or crf is not None):
        name = "boomerang" if boomerang else "crf"
        message = Message(
            "only_of_video",
            "{name} only applies to the variant video, not {variant}; remove one of them",
            name=name,
            variant=variant,
        )
        raise InvalidRequest(message, name)
    return FileEncoding(crf=None if crf == STORED_CRF else crf, boomerang=boomerang)


class VideoVariants:
    """Creates the variants of a server's videos; concurrent requests for the same one create it once."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def file(
        self,
        queue: Queue,
        images: ImageService,
        request: Request | None,
        job_id: str,
        variant: Variant,
        encoding: FileEncoding = _STORED,
    ) -> tuple[Path, str]:
        """Return the file and its media type; create it at the first request. It is deleted with the job.

        Raises:
            JobNotFound, JobUnfinished: as `Queue.result`.
            InvalidRequest: the video is too large to be encoded again.
            ServerBusy, ClientGone: as `BoundedPool.run`.
        """
        name, media_type = _FILES[variant]
        if encoding != _STORED:
            name = _encoding_name(encoding)
        async with self._locks.setdefault((job_id, name), asyncio.Lock()):
            path, exists = await asyncio.to_thread(_find, queue, job_id, name)
            if not exists and encoding != _STORED:
                await images.encodings.run(lambda gone: _encode_again(images, path, encoding, gone), request)
            elif not exists:
                await images.images.run(lambda gone: _create(images, path, gone), request)
            return path, media_type


def _encoding_name(encoding: FileEncoding) -> str:
    quality = "" if encoding.crf is None else f"-crf{encoding.crf}"
    return f"video{quality}{'-boomerang' if encoding.boomerang else ''}.mp4"


def _find(queue: Queue, job_id: str, name: str) -> tuple[Path, bool]:
    path = queue.result(job_id).with_name(name)
    return path, path.exists()


def _create(images: ImageService, path: Path, gone: Callable[[], bool]) -> None:
    function = thumbnail if path.name == _FILES["thumbnail"][0] else contact_sheet
    _write(path, lambda video: images.process.run(function, video, gone=gone, cpu_seconds=CPU_SECONDS))


def _encode_again(images: ImageService, path: Path, encoding: FileEncoding, gone: Callable[[], bool]) -> None:
    def run(video: Path) -> bytes:
        try:
            return images.encoder.run(encoded_again, video, encoding, gone=gone, cpu_seconds=CPU_SECONDS)
        except InvalidImage:  # a limit of the process
            message = Message(
                "too_large_to_encode",
                "the video is too large to be encoded again by this server; download it without crf and boomerang",
            )
            raise InvalidRequest(message) from None

    _write(path, run)
    found = sorted(path.parent.glob("video-*.mp4"), key=lambda file: (file != path, -file.stat().st_mtime))
    for old in found[MAX_ENCODINGS:]:
        for file in (old, *old.parent.glob(f"{SIGNED_PREFIX}*-{old.name}")):
            file.unlink(missing_ok=True)


def _write(path: Path, make: Callable[[Path], bytes]) -> None:
    video = path.with_name(_FILES["video"][0])
    try:
        write_atomically(path, make(video))
    except (OSError, KinemaError):
        if video.exists():
            raise
        raise JobNotFound(f"video {path.parent.name!r} was deleted") from None
