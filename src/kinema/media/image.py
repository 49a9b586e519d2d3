"""Reading, checking and fitting of input images: any supported source becomes one upright RGB image."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from PIL.AvifImagePlugin import AvifImageFile
from PIL.ImageFile import ImageFile
from PIL.WebPImagePlugin import WebPImageFile

from kinema.errors import InvalidImage, InvalidRequest
from kinema.media.file_kinds import unknown_image
from kinema.media.heif_image import coded_profile, decode_heif, open_avif, open_heif
from kinema.media.heif_structure import heif_format
from kinema.media.image_structure import check_jpeg, check_png_rows, png_structure
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kinema.recipe import ImageGeneration
    from kinema.values import Fit

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_BYTES = 100_000_000
MILLION = 1_000_000
# The photographs of 64-megapixel cameras have up to 64.3.
MAX_PIXELS = 65 * MILLION
# A larger image is opened at half its width and height, still larger than any video, to limit memory.
MAX_FULL_PIXELS = 40 * MILLION
# Formats whose decoders need so much memory that the server's decode process can't decode 65 megapixels.
MAX_FORMAT_PIXELS = {"WEBP": 40 * MILLION, "AVIF": 40 * MILLION}
FORMAT_NAMES = {"WEBP": "WebP", "HEIF": "HEIC"}
MIN_SIDE = 32
# Even, so that each strip can be halved.
STRIP_ROWS = 256

ImageSource = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray[Any, np.dtype[Any]]
)

_URL = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)

# EXIF orientation → the transpose that turns the image upright (1 is upright).
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Transposes that swap width and height.
_SWAP_SIDES = frozenset(_TRANSPOSES[orientation] for orientation in (5, 6, 7, 8))


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts about an image without its pixels: its upright size, and warnings."""

    size: tuple[int, int]
    warnings: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class InputImage:
    """An upright RGB image at its full size, or at half of it (see `open_image`).

    `sha256` is over its size and pixels, so it does not depend on the file format. `name` is the file's or URL's name
    without its extension, or None. `image_generation` records how the image was generated from a prompt, else None.
    `file` is the content of the file, or None if it came from none.
    """

    rgb: Image.Image
    sha256: str
    warnings: tuple[Message, ...] = ()
    name: str | None = None
    image_generation: ImageGeneration | None = None
    file: bytes | None = field(default=None, repr=False)
    _fitted: dict[tuple[int, int, Fit, float], Image.Image] = field(default_factory=dict, repr=False)  # by `fit_image`

    @property
    def facts(self) -> ImageFacts:
        """Its size and warnings, without its pixels."""
        return ImageFacts(self.rgb.size, self.warnings)

    def fitted(self, width: int, height: int, fit: Fit, crop_position: float = 0.5) -> Image.Image:
        """Return it as `fit_image` does, and keep the result for the next call with the same arguments."""
        key = width, height, fit, crop_position
        fitted = self._fitted.get(key) or _fit(self.rgb, *key)
        self._fitted.clear()
        self._fitted[key] = fitted
        return fitted


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The bytes of an image file before any check; `label` names it in messages."""

    data: bytes
    label: str
    name: str | None

    def decode(self) -> InputImage:
        """Check and decode the image.

        Raises:
            InvalidImage: see `open_image`.
        """
        return _input_image(_decode(self.data, self.label), self.name, self.data)

    def read_size(self) -> tuple[int, int]:
        """Return the upright size of the image from its header, in a few milliseconds.

        Raises:
            InvalidImage: the header is invalid. Nothing else is checked.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                is_heif = heif_format(self.data) is not None
                file = io.BytesIO(self.data)
                with _open_checked(self.data, self.label) if is_heif else Image.open(file, formats=FORMATS) as image:
                    return _upright(image.size, _exif_transpose(image, self.label)[0])
        except InvalidImage:
            raise
        except Exception as error:  # noqa: BLE001 - as in `_decode`
            raise InvalidImage(_damaged(self.label, error)) from None


def inspect_image(data: bytes) -> ImageFacts:
    """Check encoded bytes as `open_image` does, but decode a JPEG at an eighth of its size.

    Raises:
        InvalidImage: see `open_image`.
    """
    return _decode(data, "the image data", min_side=1).facts


def open_reduced(data: bytes, min_side: int) -> tuple[Image.Image, ImageFacts]:
    """Do the same as `inspect_image`, and return the image too: a JPEG at a fraction of its size.

    Args:
        data: The encoded image.
        min_side: Pixels to which no side of a JPEG is reduced further.

    Raises:
        InvalidImage: see `open_image`.
    """
    decoded = _decode(data, "the image data", min_side=min_side)
    return decoded.rgb, decoded.facts


def fit_encoded(data: bytes, width: int, height: int, fit: Fit = "crop", crop_position: float = 0.5) -> Image.Image:
    """Fit encoded bytes as `fit_image` does, for display: a JPEG is decoded at the smallest sufficient size.

    Raises:
        InvalidImage: see `open_image`.
        InvalidRequest: see `fit_image`.
    """
    decoded = _decode(data, "the image data", min_side=max(width, height))
    return _fit(decoded.rgb, width, height, fit, crop_position)


def open_image(source: ImageSource, *, allow_urls: bool = True) -> InputImage:
    """Open an image from a path, http(s) URL, encoded bytes, open binary file, PIL image or uint8 array.

    An array is [height, width], or [height, width, 3 or 4]. A path may begin with `~`. An open file is read from its
    current position.

    Supported are JPEG, PNG, WebP, HEIC and AVIF, recognised by content: at most 100 MB (20 MB from a URL), at most 65
    megapixels (WebP and AVIF: 40), and at least 32 pixels on each side. An image of more than 40 megapixels is opened
    at half its width and height. Orientation and colour profile are applied, and alpha is composited over white. Other
    modes (grey, palette, CMYK, 10 to 16 bits) are converted to 8-bit RGB. Of an animation, the first frame is used; of
    a HEIC file with several images, its primary one.

    Raises:
        InvalidImage: naming the image, the problem and the remedy.
    """
    match source:
        case Image.Image():
            return _input_image(_to_upright(source, "the image"), None)
        case np.ndarray():
            return _input_image(_to_upright(_from_array(source), "the array"), None)
        case bytes() | bytearray() | memoryview():
            data = bytes(source)
            return _input_image(_decode(data, "the image data"), None, data)
        case str() if is_url(source):
            if not allow_urls:
                raise InvalidImage("URLs are not allowed here; download the image and send the file")
            return fetch_image(source).decode()
        case str() | os.PathLike():
            path = _expand_user(Path(source))
            return read_image_file(path).decode()
        case list() | tuple():
            raise InvalidImage(
                f"image is a {type(source).__name__} of {len(source)}; pass one image, and call once for each"
            )
        case _ if callable(getattr(source, "read", None)):
            return _read_file(source)
        case _:
            kind = type(source).__name__
            raise InvalidImage(
                f"{kind} is not a supported image type; use a path, URL, bytes, binary file, PIL image or uint8 array"
            )


def crop_box(size: tuple[int, int], width: int, height: int, position: float = 0.5) -> tuple[int, int, int, int]:
    """Return the largest box (left, top, right, bottom) in `size` (width, height) with aspect width:height.

    `position` is 0 for a box at the left or top end, 0.5 for a centred one, and 1 for one at the right or bottom end.
    """
    w, h = size
    box_w = max(1, min(w, round(h * width / height)))
    box_h = max(1, min(h, round(w * height / width)))
    left, top = int((w - box_w) * position), int((h - box_h) * position)
    return left, top, left + box_w, top + box_h


def fit_image(image: InputImage, width: int, height: int, fit: Fit = "crop", crop_position: float = 0.5) -> Image.Image:
    """Return the image at exactly width×height, in RGB: cropped, padded with black bars, or stretched.

    The image keeps the result for the next call with the same arguments.

    Raises:
        InvalidRequest: if `fit` is not crop, pad or stretch.
    """
    return image.fitted(width, height, fit, crop_position)


def _fit(image: Image.Image, width: int, height: int, fit: Fit, crop_position: float) -> Image.Image:
    match fit:
        case "crop":
            box = crop_box(image.size, width, height, crop_position)
            return image.resize((width, height), Image.Resampling.LANCZOS, box=box)
        case "pad":
            left, top, right, bottom = crop_box((width, height), *image.size)
            padded = Image.new("RGB", (width, height))
            padded.paste(image.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
            return padded
        case "stretch":
            return image.resize((width, height), Image.Resampling.LANCZOS)
        case _:
            raise InvalidRequest(f"fit {fit!r} is not supported; use crop, pad or stretch", "fit")


def fit_warnings(size: tuple[int, int], width: int, height: int, fit: Fit = "crop") -> list[Message]:
    """Return warnings for an image of this size: that it is enlarged, or that more than half of it is cropped."""
    w, h = size
    left, top, right, bottom = crop_box((w, h), width, height)
    used_w, used_h = (right - left, bottom - top) if fit == "crop" else (w, h)
    scale = min(width / used_w, height / used_h) if fit == "pad" else max(width / used_w, height / used_h)
    messages = []
    if scale > 1:
        messages.append(
            Message(
                "image_enlarged",
                "the image ({w}×{h}) is enlarged {scale:.2g} times to {width}×{height}; a larger image is sharper",
                w=w,
                h=h,
                scale=scale,
                width=width,
                height=height,
            )
        )
    if fit == "crop" and (kept := used_w * used_h / (w * h)) < 0.5:
        messages.append(
            Message(
                "image_cut",
                "crop keeps only {kept:.0%} of the image ({w}×{h}); fit pad keeps all of it",
                kept=kept,
                w=w,
                h=h,
            )
        )
    return messages


def is_url(source: str) -> bool:
    """Return whether a source is a URL rather than a path."""
    return _URL.match(source) is not None


def fetch_image(url: str) -> EncodedImage:
    """Download the file at an http or https URL.

    Raises:
        InvalidImage: see `kinema.media.fetch.fetch`.
    """
    from kinema.media.fetch import fetch

    parts = urlsplit(url)
    data = fetch(url)
    stem = PurePosixPath(unquote(parts.path)).stem
    label = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return EncodedImage(data, label, plain_name(stem))


def plain_name(text: str, max_length: int = 100) -> str | None:
    """Return a text with only the characters that are safe in a file name, or None if nothing is left."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:max_length].rstrip("-.") or None


def _expand_user(path: Path) -> Path:
    """Replace a leading `~` by the home folder."""
    try:
        return path.expanduser()
    except RuntimeError:  # there is no such user or no home folder: a file of this name may exist
        return path


def _read_file(file: BinaryIO) -> InputImage:
    """Read and open an image from an open binary file, at most 100 MB.

    Raises:
        InvalidImage: the file is not binary, or see `open_image`.
    """
    name = getattr(file, "name", None)
    label = name if isinstance(name, str) else "the file"
    data = file.read(MAX_BYTES + 1)
    if not isinstance(data, bytes):
        raise InvalidImage(f'{label} is open in text mode; open it with mode "rb"')
    return EncodedImage(data, label, Path(name).stem if isinstance(name, str) else None).decode()


def read_image_file(path: Path) -> EncodedImage:
    """Read an image file without decoding it.

    Raises:
        InvalidImage: it is not a regular file of at most 100 MB, or can't be read.
    """
    try:
        if path.is_dir():
            raise InvalidImage(f"{path} is a folder; use one image in it")
        if not path.exists():
            raise InvalidImage(f"file {path} not found; check the name and the folder")
        if not path.is_file():
            raise InvalidImage(f"{path} is not a regular file; save the image as a file and use that")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise InvalidImage(_too_large(size, str(path)))
        return EncodedImage(path.read_bytes(), str(path), path.stem)
    except OSError as error:
        raise InvalidImage(f"{path} can't be read ({error.strerror}); check its name and permissions") from None


@dataclass(frozen=True, slots=True, eq=False)
class _Decoded:
    """An upright RGB image; `facts` describe the full size even if it was decoded at a smaller one."""

    rgb: Image.Image
    facts: ImageFacts


def _input_image(decoded: _Decoded, name: str | None, file: bytes | None = None) -> InputImage:
    """Return the image with its hash."""
    image = decoded.rgb
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    for strip in _strips(image):
        digest.update(strip.tobytes())
    return InputImage(image, digest.hexdigest(), decoded.facts.warnings, name, file=file)


def _decode(data: bytes, label: str, min_side: int | None = None) -> _Decoded:
    """Check and decode an encoded image; `label` names it in messages.

    With `min_side`, a JPEG may be decoded at a fraction of its size, if no side becomes smaller than that.
    """
    if not data:
        raise InvalidImage(Message("image_empty", "{label} is empty; download or save the image again", label=label))
    if len(data) > MAX_BYTES:
        raise InvalidImage(_too_large(len(data), label))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = _open_checked(data, label)
    except InvalidImage:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = MAX_PIXELS // MILLION
        raise InvalidImage(
            Message(
                "image_far_too_wide", "{label} has far more than {most} megapixels; shrink it", label=label, most=most
            )
        ) from None
    except UnidentifiedImageError:
        if data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or data[8:12] == b"WEBP" or heif_format(data):
            raise InvalidImage(_damaged(label, ValueError("its header is invalid"))) from None
        raise InvalidImage(unknown_image(data, label)) from None
    except Exception as error:  # noqa: BLE001 - Pillow's readers raise almost any exception for damaged files
        raise InvalidImage(_damaged(label, error)) from None
    messages = []
    if any("EXIF" in str(warning.message) for warning in caught):
        messages.append(_damaged_exif(label))
    # A phone's JPEG may contain a second image (MPO: depth, gain map), which is not an animation.
    if image.format in {"PNG", "WEBP", "AVIF"} and getattr(image, "n_frames", 1) > 1:
        messages.append(Message("image_animated", "{label} is animated; its first frame is used", label=label))
    return _to_upright(image, label, messages, min_side=min_side, own=True)


def _open_checked(data: bytes, label: str) -> Image.Image:
    """Open a supported image and check its structure, without decoding its pixels."""
    if (kind := heif_format(data)) is not None:
        image = open_heif(data, label) if kind == "HEIF" else open_avif(data, label)
        if not image.info.get("icc_profile"):
            image.info["icc_profile"] = coded_profile(data)
        return image
    if data.startswith(b"\xff\xd8\xff"):
        data = check_jpeg(data, label)
    png = png_structure(data, label) if data.startswith(b"\x89PNG\r\n\x1a\n") else None
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if png is None:
        return image
    _check_size(image, label)
    check_png_rows(data, png)
    image.verify()  # checks a PNG's checksums; the image must be opened again afterwards
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _to_upright(
    image: Image.Image,
    label: str,
    messages: Sequence[Message] = (),
    *,
    min_side: int | None = None,
    own: bool = False,
) -> _Decoded:
    """Check the size of an opened image, decode it, and convert it to upright RGB. With `own`, close the original."""
    _check_size(image, label)
    if image.mode == "F":
        raise InvalidImage(f"{label} has floating-point pixels; scale them to 0–255 and convert it to mode RGB")
    width, height = image.size
    try:
        if own and min_side is not None:
            image.draft(None, (min_side, min_side))
        elif own and width * height > MAX_FULL_PIXELS:
            image.draft(None, (width // 2, height // 2))
        image = _load_pixels(image)
        transpose, exif_warnings = _exif_transpose(image, label)
        rgb, colour_warnings = _to_rgb(image, label)
        if own:
            image.close()
        if transpose is not None:
            rgb = rgb.transpose(transpose)
    except Exception as error:  # noqa: BLE001 - as above
        raise InvalidImage(_damaged(label, error)) from None
    facts = ImageFacts(_upright((width, height), transpose), (*messages, *exif_warnings, *colour_warnings))
    return _Decoded(rgb, facts)


def _upright(size: tuple[int, int], transpose: Image.Transpose | None) -> tuple[int, int]:
    """Return a size after the transpose."""
    return (size[1], size[0]) if transpose in _SWAP_SIDES else size


def _load_pixels(image: Image.Image) -> Image.Image:
    """Decode the image; a large HEIC image at half its size.

    A WebP frame is not copied: with Pillow's own copy and the decoder's two buffers, 40 megapixels need 640 MB.
    """
    if image.format == "HEIF" and isinstance(image, ImageFile):
        return decode_heif(image, STRIP_ROWS, halve=image.width * image.height > MAX_FULL_PIXELS)
    if isinstance(image, AvifImageFile):
        image.load()
        image.fp = image._decoder = None  # noqa: SLF001 - two more copies of the pixels
        return image
    if not isinstance(image, WebPImageFile):
        image.load()
        return image
    pixels, _, _ = image._get_next()  # noqa: SLF001 - there is no public API
    image._decoder = None  # noqa: SLF001 - likewise
    frame = Image.frombuffer(image.rawmode, image.size, pixels, "raw", image.rawmode, 0, 1)
    frame.info = image.info
    return frame


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """Yield strips of 256 rows from top to bottom, so that conversions need no copy of the whole image."""
    for top in range(0, image.height, STRIP_ROWS):
        yield image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height)))


def _check_size(image: Image.Image, label: str) -> None:
    """Reject an image that is too large or too small, by its header."""
    width, height = image.size
    most = MAX_FORMAT_PIXELS.get(image.format or "", MAX_PIXELS)
    if most < width * height <= MAX_PIXELS:
        raise InvalidImage(
            Message(
                "format_too_wide",
                "{label} has {width}×{height} = {megapixels:.1f} megapixels; the maximum is {most} for {format} (other "
                "formats: {most_others}); shrink it, or save it as JPEG",
                label=label,
                width=width,
                height=height,
                megapixels=width * height / MILLION,
                most=most // MILLION,
                format=FORMAT_NAMES.get(image.format or "", image.format),
                most_others=MAX_PIXELS // MILLION,
            )
        )
    if width * height > MAX_PIXELS:
        raise InvalidImage(
            Message(
                "image_too_wide",
                "{label} has {width}×{height} = {megapixels:.1f} megapixels; the maximum is {most}; shrink it",
                label=label,
                width=width,
                height=height,
                megapixels=width * height / MILLION,
                most=most // MILLION,
            )
        )
    if min(width, height) < MIN_SIDE:
        raise InvalidImage(
            Message(
                "image_too_small",
                "{label} has {width}×{height} pixels; the minimum is {least}×{least}; use a larger image",
                label=label,
                width=width,
                height=height,
                least=MIN_SIDE,
            )
        )


def _exif_transpose(image: Image.Image, label: str) -> tuple[Image.Transpose | None, list[Message]]:
    """Return the transpose for the image's EXIF orientation, and warnings."""
    try:
        return _TRANSPOSES.get(image.getexif().get(ExifTags.Base.Orientation, 1)), []
    except Exception:  # noqa: BLE001 - a damaged EXIF block affects only the orientation
        return None, [_damaged_exif(label)]


def _to_rgb(image: Image.Image, label: str) -> tuple[Image.Image, list[Message]]:
    """Return a copy of the image in 8-bit sRGB without metadata, and warnings; a large image at half its size."""
    messages = []
    profile = image.info.get("icc_profile")
    try:
        transform = _to_srgb("CMYK" if image.mode == "CMYK" else "RGB", profile) if profile else None
    except (OSError, ImageCms.PyCMSError):
        transform = None
        messages.append(
            Message("colours_damaged", "{label} has a damaged colour profile, which is ignored", label=label)
        )
    factor = 2 if image.width * image.height > MAX_FULL_PIXELS else 1
    rgb = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    top = 0
    for strip in _strips(image):
        converted = strip if strip.mode == "CMYK" else _to_8_bit_rgb(strip)
        if factor > 1:
            converted = converted.reduce(factor)
        if transform is not None:
            converted = ImageCms.applyTransform(converted, transform) or converted
        rgb.paste(converted.convert("RGB"), (0, top))
        top += converted.height
    return rgb, messages


def _to_8_bit_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit RGB; composite alpha over white."""
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips at 255
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB") if image.mode != "RGB" else image


def _to_srgb(mode: str, profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from the embedded profile of an RGB or CMYK image to sRGB; None if none is needed."""
    embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    details = embedded.profile
    if details.xcolor_space.strip() != mode or "srgb" in (details.profile_description or "").lower():
        return None  # already sRGB, or a profile for another mode
    return ImageCms.buildTransform(embedded, ImageCms.createProfile("sRGB"), mode, "RGB")


def _from_array(array: np.ndarray[Any, np.dtype[Any]]) -> Image.Image:
    """Return an image from a uint8 array [h, w], [h, w, 3] or [h, w, 4]; else raise InvalidImage with the remedy."""
    shape = list(array.shape)
    if array.dtype.kind == "f":
        raise InvalidImage(
            f"the array has dtype {array.dtype}; for values from 0 to 1, use (array * 255).round().astype('uint8')"
        )
    if array.dtype == np.uint16:
        raise InvalidImage("the array has dtype uint16; use (array // 257).astype('uint8')")
    if array.dtype != np.uint8:
        raise InvalidImage(f"the array has dtype {array.dtype}; use uint8, from 0 to 255")
    if array.ndim == 3 and shape[2] == 1:
        raise InvalidImage(f"the array has shape {shape}; use array[:, :, 0]")
    if array.ndim == 4:
        raise InvalidImage(f"the array has shape {shape}; use one image of the batch, array[0]")
    if array.ndim == 3 and shape[0] in {3, 4} and shape[2] not in {3, 4}:
        raise InvalidImage(f"the array has shape {shape}, but channels must be last; use array.transpose(1, 2, 0)")
    if array.ndim != 2 and (array.ndim != 3 or shape[2] not in {3, 4}):
        raise InvalidImage(f"the array has shape {shape}; use [height, width] or [height, width, 3 or 4]")
    if 0 in shape:
        raise InvalidImage(f"the array has shape {shape} and no pixels; use at least {MIN_SIDE}×{MIN_SIDE}")
    return Image.fromarray(np.ascontiguousarray(array))


def _too_large(size: int, label: str) -> Message:
    """Return the message for a file over 100 MB."""
    return Message(
        "image_too_heavy",
        "{label} has {megabytes:.0f} MB; the maximum is {most}; shrink it",
        label=label,
        megabytes=size / MILLION,
        most=MAX_BYTES // MILLION,
    )


def _damaged(label: str, error: Exception) -> Message:
    """Return the message for an image of a supported format that can't be decoded."""
    if isinstance(error, MemoryError) or "memory allocation" in str(error).lower():  # libheif has no type for it
        return out_of_memory(label)
    return Message(
        "image_damaged",
        "{label} is damaged or truncated ({reason}); download it again, or save it again as PNG",
        label=label,
        reason=str(error),
    )


def out_of_memory(label: str) -> Message:
    """Return the message for an image that does not fit in memory."""
    return Message("image_out_of_memory", "there is not enough memory to decode {label}; shrink it", label=label)


def _damaged_exif(label: str) -> Message:
    return Message(
        "exif_damaged",
        "{label} has damaged EXIF data, so its orientation may be wrong; if the video is rotated, save the image again "
        "upright as PNG",
        label=label,
    )
