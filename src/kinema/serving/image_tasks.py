"""What the decode process makes for the server: fitted images, and thumbnails and contact sheets of videos."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

from kinema.media.image import fit_encoded
from kinema.media.video import tiled
from kinema.media.video_reader import each_frame, read_first_frame

if TYPE_CHECKING:
    from pathlib import Path

    from kinema.values import Fit

THUMBNAIL_WIDTH = 512


def fitted(data: bytes, width: int, height: int, fit: Fit) -> bytes:
    """An image as the engine fits it, as JPEG.

    Raises:
        InvalidImage: where the bytes are no usable image.
    """
    return _encoded(fit_encoded(data, width, height, fit), "JPEG", quality=88)


def thumbnail(video: Path) -> bytes:
    """A video's first frame, as WebP.

    Raises:
        VideoError: where it can't be decoded.
    """
    image = Image.fromarray(read_first_frame(video))
    image.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH))
    return _encoded(image, "WEBP", quality=85)


def contact_sheet(video: Path) -> bytes:
    """All frames of a video on one image, as JPEG; no more than one of them is in memory at its full size.

    Raises:
        VideoError: where it can't be decoded.
    """
    count = sum(1 for _ in each_frame(video))
    return _encoded(tiled(each_frame(video), count), "JPEG", quality=85)


def _encoded(image: Image.Image, kind: str, quality: int) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, quality=quality)
    return data.getvalue()
