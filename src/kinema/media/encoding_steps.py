"""Encoders that pass frames on to another: as a boomerang, or decoded from a stored mp4."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from kinema.errors import InvalidRequest
from kinema.media.video_encoders import encoder_for
from kinema.media.video_reader import decode_frames
from kinema.media.watermark import payload_of
from kinema.recipe import FileEncoding

if TYPE_CHECKING:
    from kinema.media.video_encoders import Frame, VideoEncoder
    from kinema.values import VideoRequest


@dataclass(frozen=True, slots=True)
class KeptWatermark:
    """The invisible watermark that the first frames of an extended video have already.

    Attributes:
        payload: Its 32 bits, as 8 hexadecimal digits.
        frames: The number of these frames.
    """

    payload: str
    frames: int


def file_encoding(*, crf: int | None = None, boomerang: bool = False) -> FileEncoding:
    """Validate untrusted options of a file, apart from the limits of its format.

    Raises:
        InvalidRequest: `crf` is invalid in all formats.
    """
    try:
        return FileEncoding(crf=crf, boomerang=boomerang)
    except ValidationError:
        limits = "an integer from 0 to 63 (of an mp4 from 1 to 51)"
        raise InvalidRequest(f"crf {crf!r} is not {limits}; lower is better", "crf") from None


def with_watermark(
    encoding: FileEncoding, request: VideoRequest, image_sha256: str, last_image_sha256: str | None
) -> FileEncoding:
    """Return the encoding with the watermark of a request and its images."""
    watermark = f"{payload_of(request, image_sha256, last_image_sha256):08x}"
    return encoding.model_copy(update={"watermark": watermark})


def with_kept_watermark(encoding: FileEncoding, watermark: KeptWatermark) -> FileEncoding:
    """Return the encoding of an extended video: its watermark goes on in the frames that do not have it yet."""
    return encoding.model_copy(update={"watermark": watermark.payload, "watermarked_before": watermark.frames})


def encoder_with(suffix: str, fps: float, encoding: FileEncoding) -> VideoEncoder:
    """Return the encoder for a suffix (see `encoder_for`) and the options of a file.

    Raises:
        InvalidRequest: the format has no quality setting, or another range.
    """
    encoder = encoder_for(suffix, fps, encoding.crf)
    if encoding.boomerang:
        encoder = BoomerangEncoder(encoder)
    return StoredFileEncoder(encoder, fps) if encoding.from_stored else encoder


class BoomerangEncoder:
    """Adds the frames forward and then backward, without repeating the first and the last."""

    def __init__(self, encoder: VideoEncoder) -> None:
        self._encoder = encoder
        self._frames: list[Frame] = []

    def add(self, frame: Frame) -> None:
        """Add the next frame."""
        self._frames.append(frame)
        self._encoder.add(frame)

    def result(self, recipe: str | None) -> bytes | dict[str, bytes]:
        """Add the frames backward and finish encoding."""
        for frame in self._frames[-2:0:-1]:
            self._encoder.add(frame)
        return self._encoder.result(recipe)


class StoredFileEncoder:
    """Encodes an mp4 of the default quality, and encodes its decoded frames again, as `kinema.media.reencode` does."""

    def __init__(self, encoder: VideoEncoder, fps: float) -> None:
        self._encoder = encoder
        self._stored = encoder_for(".mp4", fps)

    def add(self, frame: Frame) -> None:
        """Add the next frame."""
        self._stored.add(frame)

    def result(self, recipe: str | None) -> bytes | dict[str, bytes]:
        """Encode the frames a second time and finish encoding."""
        stored = self._stored.result(None)
        assert isinstance(stored, bytes)
        for frame in decode_frames(io.BytesIO(stored)):
            self._encoder.add(frame)
        return self._encoder.result(recipe)
