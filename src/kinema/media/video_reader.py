"""Video files → what they are, their frames, and the recipe inside."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import unescape

import numpy as np
from PIL import Image
from pydantic import ValidationError

from kinema.errors import RecipeError, VideoError
from kinema.values import RECIPE_FORMAT, Recipe

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import av

Frames = np.ndarray[Any, np.dtype[np.uint8]]
"""A video's frames: uint8 [frames, height, width, 3], sRGB; one frame has no first axis."""

MAX_RECIPE = 1_000_000

_BT709 = 1  # of ISO/IEC 23091-2, for matrix, primaries and transfer alike
_RANGES = {1: "limited", 2: "full"}


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video file is.

    `faststart` tells whether an mp4 can play before it has come whole (None for other kinds). Colour tags are
    "bt709", another number of ISO/IEC 23091-2, or None where the format has none. `duration` is in seconds; it and
    `fps` are exact.
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
    """What the video at `path` (a file, or a folder of png) is.

    Raises:
        VideoError: where there is none, or it can't be read.
    """
    path = Path(path)
    kind = _kind(path)
    if kind != "stream":
        frames, fps = read_frames(path)
        count, height, width, _ = frames.shape
        files = sorted(path.glob("*.png")) if kind == "folder" else [path]
        size = sum(file.stat().st_size for file in files)
        name = "png" if kind == "folder" else kind
        pixels = {"gif": "pal8", "webp": "yuv420p", "png": "rgb24"}[name]
        return VideoInfo(name, name, pixels, width, height, count, Fraction(fps), Fraction(count, fps), size)
    with _opened(path) as container:
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


def read_frames(path: str | os.PathLike[str]) -> tuple[Frames, int]:
    """All frames of a video (uint8 [frames, height, width, 3], held in memory at once) and its frames per second.

    Raises:
        VideoError: where there is no video, or it can't be decoded.
    """
    path = Path(path)
    match _kind(path):
        case "folder":
            files = sorted(path.glob("*.png"))
            with _faults(path):
                images = [Image.open(file, formats=["PNG"]) for file in files]
                fps = int(getattr(images[0], "text", {}).get("fps") or _known_fps(path) or 1)
                return _stacked(path, [np.asarray(image.convert("RGB")) for image in images]), fps
        case "stream":
            with _opened(path) as container:
                stream = container.streams.video[0]
                frames = [_pixels(frame) for frame in container.decode(stream)]
                if len(frames) < stream.frames:
                    raise VideoError(
                        f"{path} is cut short: {len(frames)} of {stream.frames} frames are there; get the video again"
                    )
                return _stacked(path, frames), round(stream.average_rate or 1)
        case _:
            return _animation(path)


def each_frame(path: str | os.PathLike[str]) -> Iterator[Frames]:
    """The frames of an mp4 or webm one by one, uint8 [height, width, 3]; those before are not kept.

    Raises:
        VideoError: where there is no such video, or it can't be decoded.
    """
    with _opened(Path(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            yield _pixels(frame)


def read_first_frame(path: str | os.PathLike[str]) -> Frames:
    """A video's first frame (uint8 [height, width, 3]); the others are not decoded.

    Raises:
        VideoError: where there is no video, or it can't be decoded.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "stream":
        with _opened(path) as container:
            first = next(container.decode(container.streams.video[0]), None)
            if first is None:
                raise VideoError(f"{path} holds no frames; get the video again")
            return _pixels(first)
    file = min(path.glob("*.png")) if kind == "folder" else path
    with _faults(path), Image.open(file, formats=["GIF", "WEBP", "PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe inside a video that Kinema made (mp4, webm, gif, webp, a folder of png or one png of it).

    Raises:
        VideoError: where there is no such file, or it is no video.
        RecipeError: where it holds no recipe, or one that this version can't follow.
    """
    path = Path(path)
    text = _recipe_text(path)
    if text is None:
        raise RecipeError(
            f"{path} holds no recipe; only files that Kinema wrote do, until another program rewrites them"
        )
    try:
        facts = json.loads(text)
        _check_format(path, facts)
        recipe = Recipe.model_validate_json(text)
        complete = facts["request"].get("seed") == recipe.request.seed  # a missing seed would be drawn anew
    except (ValidationError, ValueError) as error:
        fault = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in fault["loc"]) or "the text"
        raise RecipeError(
            f"{path} holds a comment that is no recipe, or one of another version ({where}: {fault['msg']}); "
            "use the version of Kinema that wrote it"
        ) from None
    if not complete:
        raise RecipeError(f"{path} holds a recipe without a seed, so the same video can't be made again")
    return recipe


def _check_format(path: Path, facts: Any) -> None:
    """Refuse the recipe of a version of Kinema whose recipes have other fields.

    Raises:
        RecipeError: naming both formats and the version that wrote it.
    """
    if isinstance(facts, dict) and "kinema" in facts and (found := facts.get("format", 1)) != RECIPE_FORMAT:
        raise RecipeError(
            f"{path} has a recipe of format {found}, written by Kinema {facts['kinema']}; this version reads format "
            f"{RECIPE_FORMAT}. Use that version of Kinema, or generate the video again"
        )


def _recipe_text(path: Path) -> str | None:
    """The recipe as it lies in the file, or None."""
    match _kind(path):
        case "folder":
            file = path / "recipe.json"
            if not file.is_file():
                return None
            with _faults(path):
                return file.read_bytes()[:MAX_RECIPE].decode(errors="replace")
        case "gif":
            with _faults(path), Image.open(path, formats=["GIF"]) as image:
                return _text(image.info.get("comment"))
        case "webp":
            with _faults(path), Image.open(path, formats=["WEBP"]) as image:
                found = re.search("<kinema:recipe>(.*)</kinema:recipe>", _text(image.info.get("xmp")) or "", re.DOTALL)
                return unescape(found[1]) if found else None
        case "png":
            with _faults(path), Image.open(path, formats=["PNG"]) as image:
                return _text(image.info.get("Comment"))
        case _:
            with _opened(path) as container:
                tags = {name.lower(): text for name, text in container.metadata.items()}
                return tags.get("comment")


def _text(value: object) -> str | None:
    """A text that a picture's metadata hold as bytes or text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value if isinstance(value, str) else None


def _known_fps(path: Path) -> int | None:
    """The frame rate that the recipe tells, if there is one."""
    try:
        return read_recipe(path).request.frame_rate
    except RecipeError:
        return None


def _kind(path: Path) -> str:
    """What lies at `path`, by its content: folder, gif, webp, png, or stream for all that PyAV may know."""
    with _faults(path):
        if path.is_dir():
            if not any(path.glob("*.png")):
                raise VideoError(
                    f"{path} is a folder without png frames; give a video file, or the folder of its frames"
                )
            return "folder"
        if not path.exists():
            raise VideoError(f"there is no file {path}; check the name and the folder")
        if not path.is_file():
            raise VideoError(f"{path} is not a regular file; give a video file")
        with path.open("rb") as file:
            head = file.read(16)
    if not head:
        raise VideoError(f"{path} is empty; get the video again")
    images = {"gif": head.startswith(b"GIF8"), "webp": head[8:12] == b"WEBP", "png": head.startswith(b"\x89PNG")}
    return next((name for name, found in images.items() if found), "stream")


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Translate what reading a file can raise."""
    try:
        yield
    except OSError as error:
        raise VideoError(f"{path} can't be read ({error.strerror or error}); get the video again") from None
    except (ValueError, SyntaxError, EOFError) as error:
        raise VideoError(f"{path} is damaged ({error}); get the video again") from None


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    """An mp4 or webm, open for reading. By file object and white list: a file must not make FFmpeg open others."""
    import av

    try:
        with path.open("rb") as file, av.open(file, "r", options={"format_whitelist": "mov,matroska"}) as container:
            if not container.streams.video:
                raise VideoError(f"{path} holds no pictures; give a video file")
            yield container
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or error
        raise VideoError(f"{path} can't be read as a video ({reason}); give an mp4, webm, gif or webp") from None


def _pixels(frame: av.VideoFrame) -> Frames:
    """A decoded frame in RGB, its colours as exact as FFmpeg makes them."""
    from av.video.reformatter import Interpolation

    exact = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    return np.asarray(frame.to_ndarray(format="rgb24", interpolation=exact), np.uint8)


def _animation(path: Path) -> tuple[Frames, int]:
    """A gif's or webp's frames, those that were merged because they are the same repeated, and the frame rate."""
    frames, durations = [], []
    with _faults(path), Image.open(path, formats=["GIF", "WEBP", "PNG"]) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info.get("duration", 0))
    single = [d for d in durations if d < 1.5 * min(durations)]  # merged frames stand at least twice as long
    fps = _known_fps(path) or (round(1000 * len(single) / sum(single)) if sum(single) else 1)
    repeats = [max(1, round(duration * fps / 1000)) for duration in durations]
    return np.repeat(_stacked(path, frames), repeats, axis=0), fps


def _stacked(path: Path, frames: list[Frames]) -> Frames:
    """The frames as one array."""
    if not frames:
        raise VideoError(f"{path} holds no frames; get the video again")
    if len({frame.shape for frame in frames}) > 1:
        raise VideoError(f"{path} holds frames of several sizes; give the frames of one video")
    return np.stack(frames)


def _moov_first(path: Path) -> bool:
    """Whether an mp4's index (moov) lies before its data (mdat), by walking its top boxes."""
    with path.open("rb") as file:
        while len(header := file.read(16)) >= 8:
            size, name = int.from_bytes(header[:4], "big"), header[4:8]
            if name in {b"moov", b"mdat"}:
                return name == b"moov"
            long = size == 1  # the size is then in the eight bytes that follow
            file.seek((int.from_bytes(header[8:16], "big") if long else max(size, 8)) - len(header), 1)
    return False


def _tag(code: int) -> str | None:
    """A colour tag by name; 2 is "unspecified"."""
    return "bt709" if code == _BT709 else None if code == 2 else str(code)
