"""Signing of videos on delivery: the stored file stays as it is, and a signed copy is made at the first download."""

from __future__ import annotations

import asyncio
import logging
import time
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from kinema.errors import CredentialsError, InvalidImage, JobNotFound, KinemaError, RecipeError
from kinema.jobs.job import PART_FILES
from kinema.jobs.job_files import SIGNED_PREFIX, write_once
from kinema.media.credentials.file_signer import FileSigner, usable_keys
from kinema.media.credentials.signing_keys import SigningKeys, certificate_warning, signing_keys
from kinema.media.video_reader import read_recipe
from kinema.serving.bounded_pool import BoundedPool
from kinema.serving.decode_process import DecodeProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.requests import Request

    from kinema.jobs import Queue
    from kinema.settings import Settings

log = logging.getLogger(__name__)

# Of the signing process; it reads input images, but decodes none.
SIGNER_MB = 700
# A time-stamp authority may take some seconds, of which none is CPU time.
CPU_SECONDS = 10
# How long keys are used before they are read again, since self-made ones are replaced every year.
READ_SECONDS = 3600.0


def open_signed_videos(settings: Settings) -> SignedVideos | None:
    """Return what signs the videos of a server, or None with KINEMA_CREDENTIALS=off.

    Raises:
        InvalidRequest, CredentialsError: the keys can't be used, or c2pa-python is not installed.
    """
    return None if settings.credentials == "off" else SignedVideos(settings)


class SignedVideos:
    """Signs a server's videos in a process of its own. Concurrent requests for the same file sign it once.

    Raises:
        InvalidRequest, CredentialsError: as `open_signed_videos`.

    Attributes:
        keys: The keys at the start.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process = DecodeProcess(SIGNER_MB)  # its own: the processes that decode images must not see the key
        self._pool = BoundedPool("signing", threads=2, waiting=60)
        self._locks: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()
        self._lock = Lock()
        self.keys = usable_keys(settings)
        self._read_at = time.monotonic()
        self._warning: str | None = None
        self._warn()

    async def file(self, queue: Queue, request: Request | None, job_id: str, path: Path) -> Path:
        """Return the signed copy of a file of a job: of its video, or of another encoding of it.

        It is made at the first request and deleted with the job. Servers with the same store share that of the video.

        Raises:
            CredentialsError: it can't be signed.
            JobNotFound, JobUnfinished, QueueUnavailable, InsufficientDisk: as `Queue.result`.
            ServerBusy, ClientGone: as `BoundedPool.run`.
        """
        async with self._locks.setdefault(path, asyncio.Lock()):
            return await self._pool.run(lambda gone: self._signed(queue, job_id, path, gone), request)

    @property
    def name(self) -> str:
        """The name of the signed copy of a job's video, which differs by key."""
        return f"{self._prefix(self._current_keys())}.mp4"

    def check(self) -> None:
        """Check that videos can be signed now.

        Raises:
            InvalidRequest, CredentialsError: as `signing_keys`, for example after the certificate has expired.
        """
        self._current_keys().check_dates()

    def has_signed(self, serial: str | None) -> bool:
        """Return whether a certificate is the one with which this server signs.

        Args:
            serial: Its serial number, in decimal digits; None if there is no certificate.
        """
        try:
            return serial == str(self._current_keys().certificate.serial_number)
        except KinemaError:  # the keys can't be read
            return False

    def close(self) -> None:
        """Kill the process."""
        self._process.close()

    def _signed(self, queue: Queue, job_id: str, path: Path, gone: Callable[[], bool]) -> Path:
        keys = self._current_keys()

        def make(video: Path) -> bytes:
            return self._sign(keys, video, input_images(queue, job_id), f"{job_id}.mp4", gone)

        try:
            if path.name == PART_FILES["video"]:
                return queue.signed_copy(job_id, self.name, make)
            copy = path.with_name(f"{self._prefix(keys)}-{path.name}")
            if not copy.exists():
                write_once(copy, make(path))
        except (OSError, KinemaError) as error:
            if not path.exists():
                raise JobNotFound(f"video {job_id!r} was deleted") from None
            if isinstance(error, OSError):
                raise CredentialsError(
                    f"the signed copy of {job_id} can't be stored ({error.strerror}); make {path.parent} writable"
                ) from None
            raise
        return copy

    def _sign(self, keys: SigningKeys, video: Path, images: list[Path], title: str, gone: Callable[[], bool]) -> bytes:
        try:
            return self._process.run(sign_video, keys, video, images, title, gone=gone, cpu_seconds=CPU_SECONDS)
        except InvalidImage:  # a limit of the process
            raise CredentialsError(
                "the video can't be signed within the limits of this server on memory and time; try again"
            ) from None

    def _prefix(self, keys: SigningKeys) -> str:
        """Return how the names of signed copies begin.

        Servers with one store share their copies, even if each has made keys of its own: parts of a file may be
        requested from different ones.
        """
        is_shared = self._settings.store is not None and self._settings.c2pa_cert is None
        return f"{SIGNED_PREFIX}{'self' if is_shared else keys.id}"

    def _current_keys(self) -> SigningKeys:
        """Return the keys, read again from time to time, and at once if the certificate has expired."""
        with self._lock:
            if time.monotonic() - self._read_at > READ_SECONDS or self.keys.has_expired:
                self.keys = signing_keys(self._settings)
                self._read_at = time.monotonic()
                self._warn()
            return self.keys

    def _warn(self) -> None:
        """Log that the certificate expires soon, at the start and then once a day."""
        warning = certificate_warning(self._settings)
        if warning is not None and warning != self._warning:
            log.warning("%s", warning)
        self._warning = warning


def input_images(queue: Queue, job_id: str) -> list[Path]:
    """Return the files from which a job's video was made: its image and its last image, as far as they are stored.

    Raises:
        JobNotFound, QueueUnavailable: as `Queue.image`.
    """
    job = queue.get(job_id)
    images = [queue.find_image(sha256) for sha256 in (job.image, job.last_image) if sha256 is not None]
    return [image for image in images if image is not None]


def sign_video(keys: SigningKeys, video: Path, images: list[Path], title: str) -> bytes:
    """Return the signed bytes of a video, with its input images as ingredients. Runs in the signing process.

    Raises:
        CredentialsError: it can't be signed.
    """
    try:
        recipe = read_recipe(video)
    except RecipeError:  # of another version
        recipe = None
    try:
        content, files = video.read_bytes(), [path.read_bytes() for path in images]
    except OSError as error:
        raise CredentialsError(f"{video.name} or its images can't be read ({error.strerror})") from None
    return FileSigner(keys, files).sign(content, recipe, title).content
