"""Opening and decoding of HEIC (by pi-heif) and AVIF (by Pillow); Pillow's list of formats is left as it is."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from PIL import Image, features

from kinema.errors import InvalidImage
from kinema.media.colour_spaces import nclx_profile
from kinema.media.heif_structure import check_heif, heif_colours
from kinema.messages import Message

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile


def open_heif(data: bytes, label: str) -> ImageFile:
    """Open the primary image of a HEIC file without decoding its pixels.

    Its size and pixels are as the file's own rotation and mirroring (irot, imir) make them; EXIF orientation, which
    repeats these, is not applied.

    Raises:
        InvalidImage: if pi-heif is not installed.
        Exception: of many kinds, if the file is damaged.
    """
    try:
        from pi_heif.as_plugin import HeifImageFile
    except ImportError:
        raise InvalidImage(
            Message(
                "heic_unavailable",
                "{label} is a HEIC photo, which needs the package pi-heif; install it (pip install pi-heif), or export "
                "the photo as JPEG",
                label=label,
            )
        ) from None
    check_heif(data)
    image: ImageFile = HeifImageFile(io.BytesIO(data))
    if not image.info.get("primary"):  # pi-heif leaves out images that are damaged, and selects another one
        raise ValueError("its primary image is damaged")
    return image


def open_avif(data: bytes, label: str) -> Image.Image:
    """Open an AVIF file without decoding its pixels.

    Raises:
        InvalidImage: if Pillow was built without AVIF.
        Exception: of many kinds, if the file is damaged.
    """
    if not features.check("avif"):
        raise InvalidImage(
            Message(
                "avif_unavailable",
                "{label} is an AVIF image, but Pillow was built without AVIF; install Pillow's wheel (pip install "
                "--force-reinstall pillow), or save the image as JPEG",
                label=label,
            )
        )
    check_heif(data)
    return Image.open(io.BytesIO(data), formats=["AVIF"])


def coded_profile(data: bytes) -> bytes | None:
    """Return the colour profile of a file that names its colour space by code points, else None."""
    nclx = heif_colours(data)
    return None if nclx is None else nclx_profile(nclx)


def decode_heif(image: ImageFile, strip_rows: int, *, halve: bool) -> Image.Image:
    """Decode an image from `open_heif`, in strips, so that a halved image is never in memory twice at its full size.

    Raises:
        ValueError: if it has another size than its header says.
        Exception: of many kinds, if the file is damaged.
    """
    source: Any = image
    heif = source._heif_file[source.tell()]  # noqa: SLF001 - Pillow's own loading would copy the pixels
    pixels, (width, height), mode, stride = heif.data, heif.size, heif.mode, heif.stride
    if (width, height) != image.size:
        raise ValueError(f"it has {width}×{height} pixels, but its header says {image.width}×{image.height}")
    factor = 2 if halve else 1
    decoded = Image.new(mode, (-(-width // factor), -(-height // factor)))
    for top in range(0, height, strip_rows):
        rows = min(strip_rows, height - top)
        part = pixels[top * stride : (top + rows) * stride]
        strip = Image.frombytes(mode, (width, rows), part, "raw", mode, stride)
        decoded.paste(strip.reduce(factor) if halve else strip, (0, top // factor))
    decoded.info = {"icc_profile": image.info.get("icc_profile")}
    image.close()
    source._heif_file = None  # noqa: SLF001 - frees its pixels
    return decoded
