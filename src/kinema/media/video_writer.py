"""Writing videos: a writer that encodes while frames still come, and a file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Self

import numpy as np

from kinema.errors import InsufficientDisk, VideoError
from kinema.media.video_encoders import FASTEST, SUFFIXES, Encoder, encoder_for
from kinema.media.video_reader import Frames, VideoInfo, probe, read_first_frame, read_frames, read_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from kinema.values import Recipe

__all__ = [
    "Frames",
    "VideoInfo",
    "VideoWriter",
    "check_target",
    "encode_video",
    "probe",
    "publish",
    "read_first_frame",
    "read_frames",
    "read_recipe",
    "save_video",
]

MIN_FREE_BYTES = 32_000_000


def check_target(path: str | os.PathLike[str], fps: int | None = None) -> Path:
    """The path of a video to be, once it is sure that it can be written there: ask before the work, not after it.

    The ending tells the format: .mp4, .webm, .gif, .webp, or none for a folder of png.

    Raises:
        VideoError: an unknown ending, a folder that is missing, not writable or not empty, a frame rate
            (`fps`) that the format can't keep.
        InsufficientDisk: less than 32 MB are free.
    """
    path = Path(path)
    suffix = _suffix(path)
    if fps is not None:
        _check_fps(suffix, fps)
    try:
        _check_place(path, suffix)
        probe_file = _aside(path)
        probe_file.touch(exist_ok=False)
        probe_file.unlink()
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise _write_fault(path, error) from None
    if free < MIN_FREE_BYTES:
        raise InsufficientDisk(
            f"only {free / 1e6:.0f} MB are free in {path.parent}; make room, or choose another folder"
        )
    return path


class VideoWriter:
    """Writes a video whose frames come in pieces.

    `write` returns at once and a thread encodes; what goes wrong there is raised by the next call. The file appears,
    whole, with `finish`; leaving the context without it leaves no trace.

        with VideoWriter("rocket.mp4", fps=7) as writer:
            for frames in decoded:
                writer.write(frames)
            writer.finish(recipe)

    Raises:
        VideoError, InsufficientDisk: at once where the file can't be written (see `check_target`), or later
            where encoding or writing fails.
    """

    def __init__(self, path: str | os.PathLike[str], fps: int, recipe: Recipe | None = None) -> None:
        self.path = check_target(path, fps)
        self.fps = fps
        self._recipe = recipe
        self._pool = ThreadPoolExecutor(1, "kinema-encoder")
        self._size: tuple[int, ...] | None
        self._jobs: list[Future[None]]
        self._stopped: Event
        self._encoder: Encoder
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
        self._raise_faults(wait=False)
        frames = _checked(frames, self._size)
        self._size = frames.shape[1:3]
        self._jobs.append(self._pool.submit(_encode, self._encoder, frames.copy(), self._stopped))

    def restart(self) -> None:
        """Drop all frames written so far."""
        self._stop()
        self._begin()

    def finish(self, recipe: Recipe | None = None) -> Path:
        """Wait for the encoder, write the file with the recipe inside, and give its path."""
        self._raise_faults(wait=True)
        if self._size is None:
            raise VideoError("a video needs at least one frame; write some before finishing")
        with _faults():
            content = self._encoder.result(_as_text(recipe or self._recipe))
        publish(content, self.path)
        self._begin()
        return self.path

    def _begin(self) -> None:
        self._encoder = encoder_for(_suffix(self.path), self.fps)
        self._size = None
        self._jobs = []
        self._stopped = Event()

    def _stop(self) -> None:
        """End the encoding, within a frame, without a result."""
        self._stopped.set()
        for job in self._jobs:
            job.cancel()
        for job in self._jobs:
            if not job.cancelled():
                job.exception()

    def _raise_faults(self, *, wait: bool) -> None:
        for job in self._jobs:
            if wait or job.done():
                job.result()


def save_video(frames: Frames, path: str | os.PathLike[str], fps: int, recipe: Recipe | None = None) -> Path:
    """Write frames (uint8 [n, height, width, 3]) as the format that the path's ending tells, and give the path.

    Raises:
        VideoError, InsufficientDisk: as `VideoWriter`.
    """
    with VideoWriter(path, fps, recipe) as writer:
        writer.write(frames)
        return writer.finish()


def encode_video(frames: Frames, suffix: str, fps: int, recipe: Recipe | None = None) -> bytes:
    """The bytes that `save_video` would write for a suffix such as ".mp4"."""
    if suffix not in SUFFIXES:
        raise VideoError(f"{suffix!r} is no kind of video file; {', '.join(SUFFIXES)} are")
    _check_fps(suffix, fps)
    encoder = encoder_for(suffix, fps)
    _encode(encoder, _checked(frames, None), Event())
    with _faults():
        content = encoder.result(_as_text(recipe))
    assert isinstance(content, bytes)
    return content


def _encode(encoder: Encoder, frames: Frames, stopped: Event) -> None:
    """Encode frames one by one until told to stop."""
    with _faults():
        for frame in frames:
            if stopped.is_set():
                return
            encoder.add(frame)


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Translate what an encoder can raise."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"the frames can't be encoded ({error}); try another format, such as .mp4 or .webp") from None


def _checked(frames: Frames, size: tuple[int, ...] | None) -> Frames:
    """Frames in the one layout that encoders take."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise VideoError(f"frames must be uint8 [n, height, width, 3], not {frames.dtype} {list(frames.shape)}")
    if size is not None and frames.shape[1:3] != size:
        raise VideoError(
            f"frames must stay {size[1]}×{size[0]} as the first were, not {frames.shape[2]}×{frames.shape[1]}"
        )
    return np.ascontiguousarray(frames)


def _as_text(recipe: Recipe | None) -> str | None:
    """A recipe as ASCII JSON, which every format can hold."""
    return None if recipe is None else json.dumps(recipe.model_dump(mode="json"))


def _suffix(path: Path) -> str:
    """The path's ending in small letters, if it is one that can be written."""
    suffix = path.suffix.lower()
    if suffix and suffix not in SUFFIXES:
        raise VideoError(
            f"{path} ends in {path.suffix}, which can't be written; use {', '.join(SUFFIXES)}, "
            "or a name without an ending for a folder of png"
        )
    return suffix


def _check_fps(suffix: str, fps: int) -> None:
    """Refuse a frame rate that players would slow down."""
    if fps < 1:
        raise VideoError(f"fps {fps} is not usable: at least 1")
    if fps > (fastest := FASTEST.get(suffix, fps)):
        raise VideoError(
            f"{suffix[1:]} plays at most {fastest} frames/s, not {fps}; use .mp4 or .webm, or lower playback_fps"
        )


def _check_place(path: Path, suffix: str) -> None:
    """Refuse a place where the video could not, or should not, appear."""
    if not path.name:
        raise VideoError(f"{str(path)!r} names no file; give a name such as video.mp4")
    if not path.parent.is_dir():
        state = "is not a folder" if path.parent.exists() else "does not exist"
        raise VideoError(f"the folder {path.parent} {state}; make it, or choose another")
    if suffix:
        if path.is_dir():
            raise VideoError(f"{path} is a folder; choose another name, or one inside it such as {path / 'video.mp4'}")
        if path.exists() and not path.is_file():
            raise VideoError(f"{path} is not a regular file; choose another name")
    elif path.is_dir():
        if any(path.iterdir()):
            raise VideoError(
                f"the folder {path} is not empty; name a new one for png frames, or a file such as {path / 'video.mp4'}"
            )
    elif path.exists():
        raise VideoError(f"{path} is a file, and a name without an ending means a folder of png; choose another name")


def _aside(path: Path) -> Path:
    """A hidden name beside `path`, where its content can be gathered."""
    return path.with_name(f".kinema-{secrets.token_hex(6)}.part")


def publish(content: bytes | dict[str, bytes], path: Path) -> None:
    """Make a file, or a folder of files, appear at `path` whole: written aside, synced, renamed.

    Raises:
        VideoError, InsufficientDisk: where it can't be written; nothing is left then.
    """
    aside = _aside(path)
    try:
        if isinstance(content, bytes):
            _write(aside, content)
        else:
            aside.mkdir()
            for name, data in content.items():
                _write(aside / name, data)
            _sync_folder(aside)
            if path.is_dir():
                path.rmdir()  # an empty one: check_target saw to it, and rmdir sees to it again
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _write_fault(path, error) from None
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_fault(path: Path, error: OSError) -> VideoError | InsufficientDisk:
    """An operating system's refusal in our words."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return InsufficientDisk(f"no room is left for {path}; make room, or choose another folder")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return VideoError(
            f"{path.parent} can't be written to ({error.strerror}); choose another folder, or its permissions"
        )
    return VideoError(f"{path} can't be written ({error.strerror}); choose another name or folder")
