"""Video encoders: mp4 and webm with PyAV, gif and webp with Pillow, and a folder of PNG files.

An encoder takes frames one by one and returns the whole file at the end, when the recipe is known. Encoding happens in
memory: videos are short, and no partial file is ever on disk.
"""

from __future__ import annotations

import io
import struct
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from kinema.errors import InvalidRequest, VideoError
from kinema.frame_rate import exact_rate

if TYPE_CHECKING:
    from fractions import Fraction

    import av

Frame = np.ndarray[Any, np.dtype[np.uint8]]
"""One frame: uint8 [height, width, 3], sRGB."""

SUFFIXES = (".mp4", ".webm", ".gif", ".webp")

# Maximum frame rates. Players slow down frames shorter than 20 ms (gif) and 11 ms (webp).
MAX_FPS = {".gif": 50, ".webp": 90}
# Formats with a quality: lowest, default and highest crf. At 0, x264 is lossless in a profile that browsers don't play.
CRF = {".mp4": (1, 18, 51), ".webm": (0, 20, 63)}


def check_crf(suffix: str, crf: int | None) -> None:
    """Check that a format has a quality setting and that it allows `crf`; None is the default of any format.

    Raises:
        InvalidRequest: it does not.
    """
    if crf is None:
        return
    if suffix not in CRF:
        kind = suffix[1:] or "a folder of png"
        raise InvalidRequest(f"{kind} has no crf; use .mp4 or .webm, or remove crf {crf}", "crf")
    low, default, high = CRF[suffix]
    if not low <= crf <= high:
        raise InvalidRequest(
            f"crf {crf} is out of range: {low} to {high} for {suffix[1:]}; lower is better, the default is {default}",
            "crf",
        )


class VideoEncoder(Protocol):
    """Takes frames one by one, then returns the file, or a folder's files by name."""

    def add(self, frame: Frame) -> None:
        """Add the next frame."""

    def result(self, recipe: str | None) -> bytes | dict[str, bytes]:
        """Finish encoding and return the whole video, with the recipe (ASCII JSON) in its metadata."""


def encoder_for(suffix: str, fps: float, crf: int | None = None) -> VideoEncoder:
    """Return the encoder for one of `SUFFIXES`, or for a PNG folder if `suffix` is empty.

    Raises:
        InvalidRequest: see `check_crf`.
    """
    check_crf(suffix, crf)
    match suffix:
        case ".mp4" | ".webm":
            return StreamEncoder(suffix, fps, crf)
        case ".gif" | ".webp":
            return PillowEncoder(suffix, fps)
        case _:
            return FolderEncoder(fps)


class StreamEncoder:
    """H.264 in mp4 (moov first) or VP9 in webm: 8-bit 4:2:0, BT.709, limited range, with colour tags.

    The number of threads is fixed and bit-exact flags are set, so the same frames give the same bytes. Frame times are
    exact in mp4 and rounded to milliseconds in webm; the frame rate is exact in both, also a fraction.
    """

    # x264's output depends on the number of threads, but not on their timing.
    _CODECS: ClassVar = {
        # x264's macroblock tree is not deterministic on CPUs with AVX-512.
        ".mp4": ("mp4", "libx264", 4, {"preset": "medium", "mbtree": "0"}),
        ".webm": ("webm", "libvpx-vp9", 1, {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "0"}),
    }

    def __init__(self, suffix: str, fps: float, crf: int | None = None) -> None:
        self._format, self._codec, self._threads, options = self._CODECS[suffix]
        self._options = options | {"crf": str(CRF[suffix][1] if crf is None else crf)}
        self._rate = exact_rate(fps)
        self._buffer = _Buffer()
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream
        self._packets: list[av.Packet[Any]] = []
        self._count = 0

    def add(self, frame: Frame) -> None:
        """Add the next frame."""
        import av
        from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation

        height, width, _ = frame.shape
        if self._container is None:
            self._open(width, height)
        image = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU709,
            dst_color_primaries=ColorPrimaries.BT709,
            dst_color_trc=ColorTrc.BT709,
            interpolation=Interpolation.BICUBIC
            | Interpolation.FULL_CHR_H_INP
            | Interpolation.ACCURATE_RND
            | Interpolation.BITEXACT,
            threads=1,
        )
        image.pts, image.time_base = self._count, 1 / self._rate
        image.duration = 1
        self._count += 1
        self._packets += self._stream.encode(image)

    def result(self, recipe: str | None) -> bytes:
        """Return the whole file; the packets are muxed after the recipe is set."""
        assert self._container is not None
        self._packets += self._stream.encode(None)
        if recipe is not None:
            self._container.metadata["comment"] = recipe
        self._container.mux(self._packets)
        self._container.close()
        return self._buffer.getvalue()

    def _open(self, width: int, height: int) -> None:
        """Open the container and the codec for a frame size."""
        import av
        from av.codec.context import Flags
        from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

        if width % 2 or height % 2:
            raise VideoError(
                f"{self._format} needs an even width and height, got {width}×{height}; save as png or webp"
            )
        muxing = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if self._format == "mp4" else {})
        self._container = av.open(
            self._buffer, "w", format=self._format, container_options=muxing, io_open=self._buffer.reopen
        )
        stream = self._container.add_stream(self._codec, rate=self._rate, options=self._options)
        self._stream = cast("av.VideoStream", stream)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.time_base = 1 / self._rate
        context.thread_count = self._threads
        context.flags |= Flags.bitexact
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709


class _Buffer(io.BytesIO):
    """A file in memory that the mp4 muxer can open again, which it does to move the moov box to the front."""

    name = "video"

    def reopen(self, _url: str, _flags: int, _options: dict[str, str]) -> _Reader:
        return _Reader(self)


class _Reader:
    """A second read position in a `_Buffer`."""

    def __init__(self, buffer: _Buffer) -> None:
        self._buffer, self._at = buffer, 0

    def read(self, count: int) -> bytes:
        data = bytes(self._buffer.getbuffer()[self._at : self._at + count])
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._buffer.getbuffer())}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        pass


class PillowEncoder:
    """A looping gif or animated webp.

    gif has a time unit of 10 ms and webp of 1 ms. Frame times are rounded without accumulating the error: at 7
    frames/s, gif frames last 140, 150, 140, 140, … ms. gif uses one palette of 256 colours for all frames, so static
    areas do not flicker. A frame that equals the previous one only extends its duration.
    """

    def __init__(self, suffix: str, fps: float) -> None:
        self._format, self._rate = suffix[1:].upper(), exact_rate(fps)
        self._frames: list[Frame] = []

    def add(self, frame: Frame) -> None:
        """Add the next frame."""
        self._frames.append(frame)

    def result(self, recipe: str | None) -> bytes:
        """Return the whole file; the recipe is a gif's comment or in a webp's XMP."""
        common: dict[str, Any] = {"save_all": True, "loop": 0}
        if self._format == "GIF":
            images = _quantize(self._frames)
            common |= {"duration": _frame_durations_ms(len(images), self._rate, 10), "optimize": False}
            common |= {"comment": recipe.encode()} if recipe is not None else {}
        else:
            images = [Image.fromarray(frame) for frame in self._frames]
            common |= {"duration": _frame_durations_ms(len(images), self._rate, 1), "quality": 90, "method": 4}
            common |= {"xmp": xmp(recipe)} if recipe is not None else {}
        buffer = io.BytesIO()
        images[0].save(buffer, format=self._format, append_images=images[1:], **common)
        return buffer.getvalue()


class FolderEncoder:
    """A folder of 000.png, 001.png, … and recipe.json; each PNG has the frame rate and the recipe as text chunks."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._files: list[bytes] = []

    def add(self, frame: Frame) -> None:
        """Add the next frame."""
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, format="PNG", compress_level=4)
        self._files.append(buffer.getvalue())

    def result(self, recipe: str | None) -> dict[str, bytes]:
        """Return the files by name."""
        texts = _text_chunk("fps", str(self._fps)) + (_text_chunk("Comment", recipe) if recipe is not None else b"")
        header = 8 + 25  # signature and IHDR; text chunks may follow
        files = {f"{i:03d}.png": png[:header] + texts + png[header:] for i, png in enumerate(self._files)}
        return files | ({"recipe.json": recipe.encode() + b"\n"} if recipe is not None else {})


def xmp(recipe: str) -> bytes:
    """Return an XMP packet with a recipe."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:kinema="urn:kinema:">'
        f"<kinema:recipe>{escape(recipe)}</kinema:recipe></rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def _frame_durations_ms(count: int, rate: Fraction, unit_ms: int) -> list[int]:
    """Return each frame's duration in ms, as multiples of `unit_ms` whose sum follows the frame rate."""
    starts = [round(1000 * i / (rate * unit_ms)) for i in range(count + 1)]
    return [(after - start) * unit_ms for start, after in pairwise(starts)]


def _quantize(frames: list[Frame]) -> list[Image.Image]:
    """Return the frames with one palette of 256 colours, chosen from all of them."""
    height, width, _ = frames[0].shape
    stride = max(1, round((len(frames) * height * width / 1_000_000) ** 0.5))  # about a million pixels
    sample = np.concatenate([frame[::stride, ::stride] for frame in frames])
    palette = Image.fromarray(sample).quantize(256, method=Image.Quantize.MEDIANCUT)
    return [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]


def _text_chunk(keyword: str, text: str) -> bytes:
    """Return a PNG tEXt chunk (PNG specification, 11.3.3.2)."""
    body = b"tEXt" + keyword.encode() + b"\0" + text.encode("ascii")
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
