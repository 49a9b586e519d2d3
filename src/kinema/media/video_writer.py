"""Writing of videos: encode in a background thread, and write the file atomically."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Self

import numpy as np

from kinema.errors import InsufficientDisk, InvalidRequest, VideoError
from kinema.media.encoding_steps import encoder_with
from kinema.media.video_encoders import MAX_FPS, SUFFIXES, VideoEncoder, check_crf, encoder_for
from kinema.media.video_reader import Frames, VideoInfo, probe, read_first_frame, read_frames, read_recipe
from kinema.media.watermark import embed
from kinema.partial_files import partial_path
from kinema.recipe import FileEncoding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from kinema.media.credentials.file_signer import FileSigner
    from kinema.recipe import Recipe

__all__ = [
    "Frames",
    "VideoInfo",
    "VideoWriter",
    "check_frames",
    "check_signable",
    "check_target",
    "encode_video",
    "probe",
    "publish",
    "read_first_frame",
    "read_frames",
    "read_recipe",
    "recipe_text",
    "save_video",
    "sidecar_path",
    "sync_folder",
    "write_error",
]

MIN_FREE_BYTES = 32_000_000
# Frames that are watermarked at a time, which limits the memory for copies.
_WATERMARKED_FRAMES = 8


def check_target(path: str | os.PathLike[str], fps: float | None = None, crf: int | None = None) -> Path:
    """Check before generating that a video can be written to a path, and return the path.

    The extension selects the format: .mp4, .webm, .gif or .webp; no extension means a PNG folder.

    Raises:
        VideoError: if the extension is unknown, the folder is missing, not writable or not empty, or the format
            does not support the frame rate `fps`.
        InvalidRequest: if the format does not support the quality `crf`.
        InsufficientDisk: if less than 32 MB is free.
    """
    path = Path(path)
    suffix = _suffix(path)
    check_crf(suffix, crf)
    if fps is not None:
        _check_fps(suffix, fps)
    try:
        _check_place(path, suffix)
        probe_file = partial_path(path)
        probe_file.touch(exist_ok=False)
        probe_file.unlink()
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise write_error(path, error) from None
    if free < MIN_FREE_BYTES:
        raise InsufficientDisk(
            f"only {free / 1e6:.0f} MB is free in {path.parent}; free disk space, or choose another folder"
        )
    return path


class VideoWriter:
    """Writes a video whose frames arrive in chunks.

    `write` returns immediately, and a thread encodes. The next call raises errors of that thread. `finish` writes the
    complete file; without it, leaving the context writes nothing.

        with VideoWriter("rocket.mp4", fps=7) as writer:
            for frames in decoded:
                writer.write(frames)
            writer.finish(recipe)

    The stored recipe has the `encoding`: the quality, the order of the frames and their watermark. With a `signer`, the
    file has content credentials; those of a webm are in a file beside it, with the extension .c2pa.

    Raises:
        InvalidRequest: if the format does not support the quality, or can't be signed.
        VideoError, InsufficientDisk: at construction if the file can't be written (see `check_target`), later if
            encoding or writing fails.
        CredentialsError: if the file can't be signed; nothing is written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float,
        recipe: Recipe | None = None,
        *,
        encoding: FileEncoding | None = None,
        signer: FileSigner | None = None,
    ) -> None:
        self.encoding = encoding or FileEncoding()
        self.path = check_target(path, fps, self.encoding.crf)
        if signer is not None:
            check_signable(self.path)
        self._signer = signer
        self.fps = fps
        self._recipe = recipe
        self._pool = ThreadPoolExecutor(1, "kinema-encoder")
        self._size: tuple[int, ...] | None
        self._written: int
        self._jobs: list[Future[None]]
        self._stopped: Event
        self._encoder: VideoEncoder
        self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._pool.shutdown()

    def write(self, frames: Frames) -> None:
        """Append frames: uint8 [n, height, width, 3], all of one size."""
        self._raise_errors(wait=False)
        frames = _contiguous(frames, self._size)
        self._size = frames.shape[1:3]
        watermark, done = self.encoding.watermark, max(0, self.encoding.watermarked_before - self._written)
        self._jobs.append(self._pool.submit(_encode, self._encoder, frames.copy(), self._stopped, watermark, done))
        self._written += len(frames)

    def restart(self) -> None:
        """Discard all frames written so far."""
        self._stop()
        self._begin()

    def finish(self, recipe: Recipe | None = None) -> Path:
        """Wait for the encoder, write the file with the recipe, and return its path."""
        self._raise_errors(wait=True)
        if self._size is None:
            raise VideoError("a video needs at least one frame; write some before finishing")
        recipe, change = recipe or self._recipe, {"encoding": self.encoding}
        recipe = recipe and recipe.model_copy(update=change)
        with _translate_errors():
            content = self._encoder.result(recipe_text(recipe))
        self._publish(content, recipe)
        self._begin()
        return self.path

    def _publish(self, content: bytes | dict[str, bytes], recipe: Recipe | None) -> None:
        if self._signer is None or not isinstance(content, bytes):
            publish(content, self.path)
            if self.path.suffix.lower() == ".webm":  # that of the video that was here before
                sidecar_path(self.path).unlink(missing_ok=True)
            return
        signed = self._signer.sign(content, recipe, self.path.name)
        sidecar = sidecar_path(self.path)
        if signed.sidecar is not None:
            publish(signed.sidecar, sidecar)
        try:
            publish(signed.content, self.path)
        except BaseException:
            if signed.sidecar is not None:
                sidecar.unlink(missing_ok=True)
            raise

    def _begin(self) -> None:
        self._encoder = encoder_with(_suffix(self.path), self.fps, self.encoding)
        self._size = None
        self._written = 0
        self._jobs = []
        self._stopped = Event()

    def _stop(self) -> None:
        """Stop encoding after the current frame and discard the result."""
        self._stopped.set()
        for job in self._jobs:
            job.cancel()
        for job in self._jobs:
            if not job.cancelled():
                job.exception()

    def _raise_errors(self, *, wait: bool) -> None:
        for job in self._jobs:
            if wait or job.done():
                job.result()


def save_video(
    frames: Frames,
    path: str | os.PathLike[str],
    fps: float,
    recipe: Recipe | None = None,
    *,
    encoding: FileEncoding | None = None,
    signer: FileSigner | None = None,
) -> Path:
    """Write frames (uint8 [n, height, width, 3]) in the format of the path's extension, and return the path.

    Raises:
        InvalidRequest, VideoError, InsufficientDisk, CredentialsError: see `VideoWriter`.
    """
    with VideoWriter(path, fps, recipe, encoding=encoding, signer=signer) as writer:
        writer.write(frames)
        return writer.finish()


def sidecar_path(path: Path) -> Path:
    """Return the path of the content credentials of a video whose format can't contain them."""
    return path.with_suffix(".c2pa")


def check_signable(path: Path) -> None:
    """Check that content credentials can be made for a video at this path.

    Raises:
        InvalidRequest: it is a folder of png.
    """
    if not path.suffix:
        raise InvalidRequest(
            f"{path} is a folder of png frames, which can't have content credentials; use {', '.join(SUFFIXES)}, or "
            "turn credentials off",
            "credentials",
        )


def encode_video(frames: Frames, suffix: str, fps: float, recipe: Recipe | None = None) -> bytes:
    """Return the bytes that `save_video` writes for a suffix such as ".mp4"."""
    if suffix not in SUFFIXES:
        raise VideoError(f"{suffix!r} is not a supported video extension; use {', '.join(SUFFIXES)}")
    _check_fps(suffix, fps)
    encoder = encoder_for(suffix, fps)
    _encode(encoder, _contiguous(frames, None), Event())
    with _translate_errors():
        content = encoder.result(recipe_text(recipe))
    assert isinstance(content, bytes)
    return content


def _encode(
    encoder: VideoEncoder, frames: Frames, stopped: Event, watermark: str | None = None, watermarked_before: int = 0
) -> None:
    """Encode frames one by one until `stopped` is set; put the watermark, if there is one, into all but the first."""
    with _translate_errors():
        for frame in frames if watermark is None else _watermarked(frames, int(watermark, 16), watermarked_before):
            if stopped.is_set():
                return
            encoder.add(frame)


def _watermarked(frames: Frames, payload: int, watermarked_before: int) -> Iterator[Frames]:
    """Yield the frames, all but the first few with the watermark."""
    yield from frames[:watermarked_before]
    for start in range(watermarked_before, len(frames), _WATERMARKED_FRAMES):
        yield from embed(frames[start : start + _WATERMARKED_FRAMES], payload)


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Translate an encoder's errors to VideoError."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"the frames can't be encoded ({error}); try another format, such as .mp4 or .webp") from None


def check_frames(frames: Frames) -> None:
    """Check that frames are uint8 [n, height, width, 3] and not empty.

    Raises:
        VideoError: they are not.
    """
    shape = list(frames.shape)
    if frames.dtype != np.uint8 or frames.ndim != 4 or shape[3] != 3:
        remedy = (
            "; for values from 0 to 1 use (frames * 255).round().astype('uint8')" if frames.dtype.kind == "f" else ""
        )
        raise VideoError(f"expected frames of uint8 [n, height, width, 3], got {frames.dtype} {shape}{remedy}")
    if 0 in shape:
        raise VideoError(f"the frames are empty (shape {shape}); pass at least one frame with at least one pixel")


def _contiguous(frames: Frames, size: tuple[int, ...] | None) -> Frames:
    """Check dtype, shape and size of frames, and return them as a contiguous array."""
    check_frames(frames)
    if size is not None and frames.shape[1:3] != size:
        raise VideoError(
            f"all frames must have the size of the first, {size[1]}×{size[0]}, got {frames.shape[2]}×{frames.shape[1]}"
        )
    return np.ascontiguousarray(frames)


def recipe_text(recipe: Recipe | None) -> str | None:
    """Return a recipe as ASCII JSON, which every format can store."""
    return None if recipe is None else json.dumps(recipe.model_dump(mode="json"))


def _suffix(path: Path) -> str:
    """Return the path's extension in lower case, and check that it is supported."""
    suffix = path.suffix.lower()
    if suffix and suffix not in SUFFIXES:
        raise VideoError(
            f"{path} has the unsupported extension {path.suffix}; use {', '.join(SUFFIXES)}, "
            "or no extension for a folder of png"
        )
    return suffix


def _check_fps(suffix: str, fps: float) -> None:
    """Reject a frame rate below 1, or above the maximum that players show for the format."""
    if fps < 1:
        raise VideoError(f"fps {fps} is out of range: at least 1")
    if fps > (maximum := MAX_FPS.get(suffix, fps)):
        raise VideoError(
            f"{suffix[1:]} supports at most {maximum} frames/s, not {fps}; use .mp4 or .webm, or lower playback_fps"
        )


def _check_place(path: Path, suffix: str) -> None:
    """Check that the folder exists and that the path may be written."""
    if not path.name:
        raise VideoError(f"{str(path)!r} has no file name; use a name such as video.mp4")
    if not path.parent.is_dir():
        state = "is not a folder" if path.parent.exists() else "does not exist"
        raise VideoError(f"the folder {path.parent} {state}; create it, or choose another")
    if suffix:
        if path.is_dir():
            raise VideoError(f"{path} is a folder; choose another name, or one inside it such as {path / 'video.mp4'}")
        if path.exists() and not path.is_file():
            raise VideoError(f"{path} is not a regular file; choose another name")
    elif path.is_dir():
        if any(path.iterdir()):
            raise VideoError(
                f"the folder {path} is not empty; use a new one for png frames, or a file such as {path / 'video.mp4'}"
            )
    elif path.exists():
        raise VideoError(
            f"{path} is a file, but a name without an extension means a folder of png; choose another name"
        )


def publish(content: bytes | dict[str, bytes], path: Path) -> None:
    """Write a file or a folder of files atomically: write to a temporary path, sync, rename.

    Raises:
        VideoError, InsufficientDisk: if it can't be written; no files remain.
    """
    temporary = partial_path(path)
    try:
        if isinstance(content, bytes):
            _write(temporary, content)
        else:
            temporary.mkdir()
            for name, data in content.items():
                _write(temporary / name, data)
            sync_folder(temporary)
            if path.is_dir():
                path.rmdir()  # empty: check_target checks it, and rmdir fails otherwise
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync a folder so that a rename survives a power failure, if the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_error(path: Path, error: OSError) -> VideoError | InsufficientDisk:
    """Translate an operating system's error."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return InsufficientDisk(f"no disk space is left for {path}; free disk space, or choose another folder")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return VideoError(
            f"{path.parent} can't be written to ({error.strerror}); choose another folder, or change its permissions"
        )
    return VideoError(f"{path} can't be written ({error.strerror}); choose another name or folder")
