"""Functions for the decode process: fit an image; make a thumbnail, a contact sheet or another encoding of a video."""

from __future__ import annotations

import io
from collections import deque
from typing import TYPE_CHECKING

from PIL import Image

from kinema.media.image import fit_encoded
from kinema.media.reencode import reencode
from kinema.media.video import make_contact_sheet
from kinema.media.video_reader import each_frame, read_first_frame

if TYPE_CHECKING:
    from pathlib import Path

    from kinema.recipe import FileEncoding
    from kinema.values import Fit

THUMBNAIL_WIDTH = 512


def fitted(data: bytes, width: int, height: int, fit: Fit, crop_position: float = 0.5) -> bytes:
    """Return an image, fitted to the video's size as the engine does it, as JPEG.

    Raises:
        InvalidImage: the image can't be used.
    """
    return _encode(fit_encoded(data, width, height, fit, crop_position), "JPEG", quality=88)


def thumbnail(video: Path) -> bytes:
    """Return a video's first frame as WebP.

    Raises:
        VideoError: the video can't be decoded.
    """
    image = Image.fromarray(read_first_frame(video))
    image.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH))
    return _encode(image, "WEBP", quality=85)


def last_frame(video: Path) -> bytes:
    """Return a video's last frame as PNG.

    Raises:
        VideoError: the video can't be decoded.
    """
    frame = deque(each_frame(video), maxlen=1).pop()
    return _encode(Image.fromarray(frame), "PNG")


def contact_sheet(video: Path) -> bytes:
    """Return all frames of a video tiled in one JPEG; only one full-size frame is in memory at a time.

    Raises:
        VideoError: the video can't be decoded.
    """
    count = sum(1 for _ in each_frame(video))
    return _encode(make_contact_sheet(each_frame(video), count), "JPEG", quality=85)


def encoded_again(video: Path, encoding: FileEncoding) -> bytes:
    """Return an mp4 with the frames of a video in another encoding.

    Raises:
        VideoError: the video can't be decoded.
    """
    return reencode(video, encoding.crf, boomerang=encoding.boomerang)


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()
