"""Reading of video files: properties, frames and the stored recipe."""

from __future__ import annotations

import itertools
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.sax.saxutils import unescape

import numpy as np
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pydantic import ValidationError

from kinema.errors import RecipeError, VideoError
from kinema.frame_rate import exact_rate, rate_number
from kinema.messages import Message
from kinema.recipe import RECIPE_FORMAT, Recipe

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import av

Frames = np.ndarray[Any, np.dtype[np.uint8]]
"""Frames of a video: uint8 [frames, height, width, 3], sRGB; a single frame has no first axis."""

MAX_RECIPE = 1_000_000
MAX_STORED_FPS = 1000
_PILLOW_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # from there on, Pillow opens no image

_BT709 = 1  # in ISO/IEC 23091-2, for matrix, primaries and transfer
_RANGES = {1: "limited", 2: "full"}


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Properties of a video file.

    `faststart` is whether an mp4 can play before it is downloaded completely (None for other formats). `matrix`,
    `primaries` and `transfer` are "bt709", another code of ISO/IEC 23091-2 as text, or None if unspecified;
    `color_range` is "limited", "full" or None. `duration` is in seconds. It and `fps` are exact for mp4 and webm;
    elsewhere `fps` is that of the recipe, else a whole number that is estimated.
    """

    container: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    frames: int
    fps: Fraction
    duration: Fraction
    size_bytes: int
    faststart: bool | None = None
    matrix: str | None = None
    primaries: str | None = None
    transfer: str | None = None
    color_range: str | None = None


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Read the properties of the video at `path`, a file or a PNG folder.

    Raises:
        VideoError: if there is no video, or it can't be read.
    """
    path = Path(path)
    kind = file_kind(path)
    if kind != "stream":
        frames, fps = read_frames(path)
        count, height, width, _ = frames.shape
        files = sorted(path.glob("*.png")) if kind == "folder" else [path]
        size = sum(file.stat().st_size for file in files)
        name = "png" if kind == "folder" else kind
        pixels = {"gif": "pal8", "webp": "yuv420p", "png": "rgb24"}[name]
        rate = exact_rate(fps)
        return VideoInfo(name, name, pixels, width, height, count, rate, count / rate, size)
    with _open_container(path) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        count = sum(packet.size > 0 for packet in container.demux(stream))
        rate = stream.average_rate or Fraction(0)
        mp4 = "mp4" in container.format.name.split(",")
        return VideoInfo(
            container="mp4" if mp4 else "webm",
            codec=context.name,
            pix_fmt=context.pix_fmt or "unknown",
            width=context.width,
            height=context.height,
            frames=count,
            fps=rate,
            duration=count / rate if rate else Fraction(0),
            size_bytes=path.stat().st_size,
            faststart=_moov_first(path) if mp4 else None,
            matrix=_tag(context.colorspace),
            primaries=_tag(context.color_primaries),
            transfer=_tag(context.color_trc),
            color_range=_RANGES.get(context.color_range),
        )


def read_frames(path: str | os.PathLike[str]) -> tuple[Frames, float]:
    """Return all frames of a video, uint8 [frames, height, width, 3], and its frames per second (see `exact_rate`).

    Raises:
        VideoError: if there is no video, or it can't be decoded.
    """
    path = Path(path)
    match file_kind(path):
        case "folder":
            files = sorted(path.glob("*.png"))
            with _translate_errors(path):
                images = [Image.open(file, formats=["PNG"]) for file in files]
                fps = _stored_fps(images[0]) or _recipe_fps(path) or 1
                return _stack(path, [np.asarray(image.convert("RGB")) for image in images]), fps
        case "stream":
            with _open_container(path) as container:
                stream = container.streams.video[0]
                frames = [_pixels(frame) for frame in container.decode(stream)]
                if len(frames) < stream.frames:
                    raise VideoError(
                        f"{path} is truncated ({len(frames)} of {stream.frames} frames); download or generate it again"
                    )
                return _stack(path, frames), rate_number(stream.average_rate or Fraction(1))
        case _:
            return _animation(path)


def each_frame(path: str | os.PathLike[str], max_pixels: int | None = None) -> Iterator[Frames]:
    """Yield the frames of an mp4, webm, gif, webp or png one by one, uint8 [height, width, 3].

    Args:
        path: The file.
        max_pixels: The most pixels of a frame, which is checked before it is decoded: headers may name another size.

    Raises:
        VideoError: if there is no such video, it can't be decoded, or a frame has more pixels.
    """
    path = Path(path)
    yield from _stream_frames(path, max_pixels) if file_kind(path) == "stream" else _animation_frames(path, max_pixels)


def _stream_frames(path: Path, max_pixels: int | None) -> Iterator[Frames]:
    import av

    with _open_container(path) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        if max_pixels is not None:
            context.options = {"max_pixels": str(max_pixels)}
        try:
            for frame in container.decode(stream):
                yield _pixels(frame)
        except av.ArgumentError:
            if max_pixels is None or context.width:  # FFmpeg sets it to 0 if it does not accept the size of a frame
                raise
            raise _too_large(path, max_pixels) from None


def _animation_frames(path: Path, max_pixels: int | None) -> Iterator[Frames]:
    with _translate_errors(path), Image.open(path, formats=["GIF", "WEBP", "PNG"]) as image:
        for index in itertools.count():
            try:
                image.seek(index)
            except EOFError:
                return
            except Image.DecompressionBombError:  # the limit of Pillow, which is higher
                raise _too_large(path, max_pixels or _PILLOW_PIXELS) from None
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise _too_large(path, max_pixels)
            yield np.asarray(image.convert("RGB"))


def _too_large(path: Path, max_pixels: int) -> VideoError:
    most = max_pixels / 1e6
    return VideoError(
        Message(
            "frames_above_limit",
            "{path} has frames of more than {most:.1f} megapixels, though its header may name fewer; use a copy with "
            "smaller frames",
            path=path,
            most=most,
        )
    )


def decode_frames(file: BinaryIO) -> Iterator[Frames]:
    """Yield the frames of an mp4 that Kinema has just encoded, uint8 [height, width, 3]."""
    import av

    with av.open(file, "r", format="mp4") as container:
        for frame in container.decode(container.streams.video[0]):
            yield _pixels(frame)


def read_first_frame(path: str | os.PathLike[str]) -> Frames:
    """Decode only the first frame of a video, uint8 [height, width, 3].

    Raises:
        VideoError: if there is no video, or it can't be decoded.
    """
    path = Path(path)
    kind = file_kind(path)
    if kind == "stream":
        with _open_container(path) as container:
            first = next(container.decode(container.streams.video[0]), None)
            if first is None:
                raise VideoError(f"{path} has no frames; download or generate it again")
            return _pixels(first)
    file = min(path.glob("*.png")) if kind == "folder" else path
    with _translate_errors(path), Image.open(file, formats=["GIF", "WEBP", "PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read the recipe from a video by Kinema: mp4, webm, gif, webp, a PNG folder, or one PNG of it.

    Raises:
        VideoError: if there is no such file, or it is not a video.
        RecipeError: if it has no recipe, or one that this version does not support.
    """
    path = Path(path)
    text = _recipe_text(path)
    if text is None:
        raise RecipeError(
            f"{path} has no recipe; only files written by Kinema and not changed by other programs have one"
        )
    try:
        fields = json.loads(text)
        _check_format(path, fields)
        recipe = Recipe.model_validate_json(text)
        has_seed = fields["request"].get("seed") == recipe.request.seed  # a missing seed is replaced by a random one
    except (ValidationError, ValueError) as error:
        details = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in details["loc"]) or "the text"
        raise RecipeError(
            f"{path} has a comment that is not a recipe, or a recipe of another version ({where}: {details['msg']}); "
            "use the version of Kinema that wrote it"
        ) from None
    if not has_seed:
        raise RecipeError(f"{path} has a recipe without a seed, so the video can't be reproduced")
    return recipe


def _check_format(path: Path, fields: Any) -> None:
    """Reject a recipe of a format that this version does not read.

    Raises:
        RecipeError: naming both formats and the version that wrote it.
    """
    if isinstance(fields, dict) and "kinema" in fields and (actual := fields.get("format", 1)) != RECIPE_FORMAT:
        raise RecipeError(
            f"{path} has a recipe of format {actual}, written by Kinema {fields['kinema']}; this version reads format "
            f"{RECIPE_FORMAT}. Use that version of Kinema, or generate the video again"
        )


def _recipe_text(path: Path) -> str | None:
    """Return the text of the recipe in a file, or None."""
    match file_kind(path):
        case "folder":
            file = path / "recipe.json"
            if not file.is_file():
                return None
            with _translate_errors(path):
                return file.read_bytes()[:MAX_RECIPE].decode(errors="replace")
        case "gif":
            with _translate_errors(path), Image.open(path, formats=["GIF"]) as image:
                return _text(image.info.get("comment"))
        case "webp":
            with _translate_errors(path), Image.open(path, formats=["WEBP"]) as image:
                found = re.search("<kinema:recipe>(.*)</kinema:recipe>", _text(image.info.get("xmp")) or "", re.DOTALL)
                return unescape(found[1]) if found else None
        case "png":
            with _translate_errors(path), Image.open(path, formats=["PNG"]) as image:
                return _text(image.info.get("Comment"))
        case _:
            with _open_container(path) as container:
                tags = {name.lower(): text for name, text in container.metadata.items()}
                return tags.get("comment")


def _text(value: object) -> str | None:
    """Return a metadata value as text; None if it is neither bytes nor text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value if isinstance(value, str) else None


def _stored_fps(image: Image.Image) -> float | None:
    """Return the frame rate in a PNG's text, or None.

    Raises:
        ValueError: it is not a frame rate.
    """
    text = getattr(image, "text", {}).get("fps")
    if text is None:
        return None
    if not 0 < (fps := float(text)) <= MAX_STORED_FPS:
        raise ValueError(f"its frame rate is {text}")
    return rate_number(exact_rate(fps))


def _recipe_fps(path: Path) -> float | None:
    """Return the frame rate in the recipe, or None without a recipe."""
    try:
        return read_recipe(path).request.frame_rate
    except RecipeError:
        return None


def file_kind(path: Path) -> str:
    """Detect the kind of video by content: folder, gif, webp, png, or stream for everything else (read with PyAV)."""
    with _translate_errors(path):
        if path.is_dir():
            if not any(path.glob("*.png")):
                raise VideoError(f"{path} is a folder without png frames; use a video file or a folder of frames")
            return "folder"
        if not path.exists():
            raise VideoError(f"file {path} not found; check the name and the folder")
        if not path.is_file():
            raise VideoError(f"{path} is not a regular file; use a video file")
        with path.open("rb") as file:
            head = file.read(16)
    if not head:
        raise VideoError(Message("video_empty", "{path} is empty; download or generate it again", path=path))
    is_kind = {"gif": head.startswith(b"GIF8"), "webp": head[8:12] == b"WEBP", "png": head.startswith(b"\x89PNG")}
    return next((name for name, matches in is_kind.items() if matches), "stream")


def probe_size(path: Path) -> tuple[int, int]:
    """Return width and height of a video from its header, without decoding.

    Raises:
        VideoError: if there is no video, or it can't be read.
    """
    kind = file_kind(path)
    if kind == "stream":
        with _open_container(path) as container:
            context = container.streams.video[0].codec_context
            return context.width, context.height
    # Image.open checks the size first, and its error names neither size nor a limit of ours.
    opened = {"gif": GifImageFile, "webp": WebPImageFile, "png": PngImageFile}[kind]
    with _translate_errors(path), opened(path) as image:
        return image.size


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Translate errors of reading a file to VideoError."""
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from None
    except Image.DecompressionBombError:
        raise _too_large(path, _PILLOW_PIXELS) from None
    except (ValueError, SyntaxError, EOFError) as error:
        raise VideoError(
            Message(
                "video_damaged",
                "{path} is damaged ({reason}); download or generate it again",
                path=path,
                reason=str(error),
            )
        ) from None


def _unreadable(path: Path, error: OSError | av.FFmpegError) -> VideoError:
    reason = error.strerror or str(error)
    if isinstance(error, MemoryError):
        return VideoError(
            Message(
                "video_needs_memory", "{path} takes more memory to decode than there is; use a smaller copy", path=path
            )
        )
    return VideoError(
        Message(
            "video_unreadable",
            "{path} can't be read ({reason}); download or generate it again",
            path=path,
            reason=reason,
        )
    )


@contextmanager
def _open_container(path: Path) -> Iterator[av.container.InputContainer]:
    """Open an mp4 or webm. A file object and a format whitelist keep FFmpeg from opening other files."""
    import av

    try:
        with path.open("rb") as file, av.open(file, "r", options={"format_whitelist": "mov,matroska"}) as container:
            if not container.streams.video:
                raise VideoError(Message("no_video_stream", "{path} has no video stream; use a video file", path=path))
            yield container
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, av.FFmpegError) and not isinstance(error, MemoryError):
            raise VideoError(_state(path)) from None
        raise _unreadable(path, error) from None


def _state(path: Path) -> Message:
    """Return what is wrong with a file whose content FFmpeg does not accept, and what to do."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        head = b""
    if head[4:8] == b"ftyp" or head.startswith(b"\x1aE\xdf\xa3"):
        return Message(
            "video_incomplete",
            "{path} can't be read as a video: it is incomplete or damaged; download or generate it again",
            path=path,
        )
    return Message(
        "no_video",
        "{path} can't be read as a video: it is neither mp4 nor webm, gif, webp or png; use one of these",
        path=path,
    )


def _pixels(frame: av.VideoFrame) -> Frames:
    """Convert a decoded frame to RGB with FFmpeg's most accurate settings."""
    from av.video.reformatter import Interpolation

    exact = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    return np.asarray(frame.to_ndarray(format="rgb24", interpolation=exact), np.uint8)


def _animation(path: Path) -> tuple[Frames, float]:
    """Return the frames of a gif or webp, with merged equal frames repeated, and the frame rate."""
    frames, durations = [], []
    with _translate_errors(path), Image.open(path, formats=["GIF", "WEBP", "PNG"]) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info.get("duration", 0))
    single = [d for d in durations if d < 1.5 * min(durations)]  # merged frames last at least twice as long
    fps = _recipe_fps(path) or (round(1000 * len(single) / sum(single)) if sum(single) else 1)
    repeats = [max(1, round(duration * fps / 1000)) for duration in durations]
    return np.repeat(_stack(path, frames), repeats, axis=0), fps


def _stack(path: Path, frames: list[Frames]) -> Frames:
    """Return the frames as one array."""
    if not frames:
        raise VideoError(f"{path} has no frames; download or generate it again")
    if len({frame.shape for frame in frames}) > 1:
        raise VideoError(f"{path} has frames of several sizes; use the frames of one video")
    return np.stack(frames)


def _moov_first(path: Path) -> bool:
    """Return whether an mp4's index (moov) is before its data (mdat), by reading its top-level boxes."""
    with path.open("rb") as file:
        while len(header := file.read(16)) >= 8:
            size, name = int.from_bytes(header[:4], "big"), header[4:8]
            if name in {b"moov", b"mdat"}:
                return name == b"moov"
            long = size == 1  # the next eight bytes contain the size
            file.seek((int.from_bytes(header[8:16], "big") if long else max(size, 8)) - len(header), 1)
    return False


def _tag(code: int) -> str | None:
    """Return the name of a colour tag; 2 is "unspecified"."""
    return "bt709" if code == _BT709 else None if code == 2 else str(code)
