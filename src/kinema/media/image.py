"""Anything that holds a picture → one upright RGB still, bounded and checked; and how it meets a video's size."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from PIL.WebPImagePlugin import WebPImageFile

from kinema.errors import InvalidImage, InvalidRequest
from kinema.media.image_structure import check_png_rows, checked_jpeg, png_structure
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kinema.values import Fit, ImageGeneration

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_BYTES = 100_000_000
MAX_PIXELS = 40_000_000
MILLION = 1_000_000
MIN_SIDE = 32
STRIP_ROWS = 256

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray[Any, np.dtype[Any]]

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)

# EXIF orientation → what turns the picture upright (1 already is).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What exchanges width and height.
_ON_ITS_SIDE = frozenset(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))

_PNG = Message("save_as_png", "save it as PNG")
_PNG_OR_JPEG = Message("save_as_png_or_jpeg", "save it as PNG or JPEG")
_EXPORT = Message("export_as_png", "export it as PNG")
_JPEG = Message("export_as_jpeg", "export it as JPEG")
_ONE_FRAME = Message("save_a_frame", "save one of its frames as PNG")
_TIFF = Message("a_tiff", "a TIFF or camera raw picture")
_JPEG_XL = Message("a_jpeg_xl", "a JPEG XL picture")
_HEIC = Message("a_heic", "a HEIC photo")
_VIDEO = Message("a_video", "a video")
# First bytes of what people give by mistake: (offset, bytes, what it seems to be, what to do).
_OTHERS = (
    (0, b"GIF8", Message("a_gif", "a GIF"), _ONE_FRAME),
    (0, b"%PDF", Message("a_pdf", "a PDF document"), Message("export_the_page", "export the page as PNG")),
    (0, b"BM", Message("a_bmp", "a BMP picture"), _PNG),
    (0, b"II*\0", _TIFF, _PNG_OR_JPEG),
    (0, b"MM\0*", _TIFF, _PNG_OR_JPEG),
    (0, b"8BPS", Message("a_psd", "a Photoshop document"), _EXPORT),
    (0, b"\xff\x0a", _JPEG_XL, _PNG_OR_JPEG),
    (0, b"\0\0\0\x0cJXL ", _JPEG_XL, _PNG_OR_JPEG),
    (0, b"\0\0\0\x0cjP  ", Message("a_jpeg_2000", "a JPEG 2000 picture"), _PNG_OR_JPEG),
    (0, b"\0\0\1\0", Message("an_icon", "an icon"), _PNG),
    (
        0,
        b"PK\3\4",
        Message("a_zip", "a ZIP archive or office document"),
        Message("take_it_out", "take the picture out of it"),
    ),
    (0, b"\x1aE\xdf\xa3", _VIDEO, _ONE_FRAME),
    (4, b"ftypavi", Message("an_avif", "an AVIF picture"), _PNG_OR_JPEG),
    (4, b"ftyphe", _HEIC, _JPEG),
    (4, b"ftypmif1", _HEIC, _JPEG),
    (4, b"ftypmsf1", _HEIC, _JPEG),
    (4, b"ftyp", _VIDEO, _ONE_FRAME),
)
_OURS = ((0, b"\xff\xd8\xff", "JPEG"), (0, b"\x89PNG\r\n\x1a\n", "PNG"), (8, b"WEBP", "WebP"))


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of a still without keeping its pixels: its upright size, and what could not be followed."""

    size: tuple[int, int]
    warnings: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class InputImage:
    """An upright RGB picture at its full size.

    `sha256` is over its size and pixels, so the same picture has the same hash in whatever file it came.
    `name` is the file's or URL's name without its extension, None if there is none. `image_generation` records how it
    was generated, if it was not given.
    """

    rgb: Image.Image
    sha256: str
    warnings: tuple[Message, ...] = ()
    name: str | None = None
    image_generation: ImageGeneration | None = None

    @property
    def facts(self) -> ImageFacts:
        """What is known of it without its pixels."""
        return ImageFacts(self.rgb.size, self.warnings)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A picture's file, whole in memory and not checked yet: what messages call it, and the still's name."""

    data: bytes
    label: str
    name: str | None

    def decoded(self) -> InputImage:
        """The still.

        Raises:
            InvalidImage: as `open_image`.
        """
        return _image(_decoded(self.data, self.label), self.name)


def inspect_image(data: bytes) -> ImageFacts:
    """Check encoded bytes as `open_image` does, decoding a JPEG at an eighth of its size.

    Raises:
        InvalidImage: as `open_image`.
    """
    return _decoded(data, "the image data", at_least=1).facts


def fit_encoded(data: bytes, width: int, height: int, fit: Fit = "crop") -> Image.Image:
    """As `fit_image` of encoded bytes, for looking at: a JPEG is decoded at the smallest size that has enough pixels.

    Raises:
        InvalidImage: as `open_image`.
        InvalidRequest: as `fit_image`.
    """
    return _fitted(_decoded(data, "the image data", at_least=max(width, height)).rgb, width, height, fit)


def open_image(source: Source, *, allow_urls: bool = True) -> InputImage:
    """A still from a path, an http(s) address, encoded bytes, a PIL image, or a uint8 array ([h, w] or [h, w, 3 or 4]).

    Files are told by their content: JPEG, PNG or WebP, at most 100 MB (20 MB from an address), 40 megapixels and
    no side under 32 pixels. EXIF orientation and colour profile are applied, alpha is laid over white, other
    kinds (grey, palette, CMYK, 16 bits) become 8-bit RGB, and of an animation the first frame is taken.

    Raises:
        InvalidImage: naming what was given, what is wrong with it and what to do.
    """
    match source:
        case Image.Image():
            return _image(_upright(source, "the image"), None)
        case np.ndarray():
            return _image(_upright(_from_array(source), "the array"), None)
        case bytes() | bytearray() | memoryview():
            return _image(_decoded(bytes(source), "the image data"), None)
        case str() if is_address(source):
            if not allow_urls:
                raise InvalidImage("addresses are not fetched here; download the picture and send the file")
            return fetch_image(source).decoded()
        case str() | os.PathLike():
            path = Path(source)
            return EncodedImage(_read(path), str(path), path.stem).decoded()
        case _:
            kind = type(source).__name__
            raise InvalidImage(f"a {kind} is no still; give a path, an address, bytes, a PIL image or a uint8 array")


def crop_box(size: tuple[int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """The largest centred box (left, top, right, bottom) within `size` (width, height) of the shape width:height."""
    w, h = size
    box_w = max(1, min(w, round(h * width / height)))
    box_h = max(1, min(h, round(w * height / width)))
    left, top = (w - box_w) // 2, (h - box_h) // 2
    return left, top, left + box_w, top + box_h


def fit_image(image: InputImage, width: int, height: int, fit: Fit = "crop") -> Image.Image:
    """The still at exactly width×height, in RGB: cut evenly (crop), with black bars (pad) or distorted (stretch).

    Raises:
        InvalidRequest: where `fit` is none of these.
    """
    return _fitted(image.rgb, width, height, fit)


def _fitted(image: Image.Image, width: int, height: int, fit: Fit) -> Image.Image:
    match fit:
        case "crop":
            box = crop_box(image.size, width, height)
            return image.resize((width, height), Image.Resampling.LANCZOS, box=box)
        case "pad":
            left, top, right, bottom = crop_box((width, height), *image.size)
            framed = Image.new("RGB", (width, height))
            framed.paste(image.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
            return framed
        case "stretch":
            return image.resize((width, height), Image.Resampling.LANCZOS)
        case _:
            raise InvalidRequest(f"fit {fit!r} is not usable: crop, pad and stretch are", "fit")


def fit_warnings(size: tuple[int, int], width: int, height: int, fit: Fit = "crop") -> list[Message]:
    """What a person should know before a still of this size is fitted: that it is enlarged, or that much is cut off."""
    w, h = size
    left, top, right, bottom = crop_box((w, h), width, height)
    shown_w, shown_h = (right - left, bottom - top) if fit == "crop" else (w, h)
    scale = min(width / shown_w, height / shown_h) if fit == "pad" else max(width / shown_w, height / shown_h)
    cautions = []
    if scale > 1:
        cautions.append(
            Message(
                "image_enlarged",
                "the still ({w}×{h}) is enlarged {scale:.2g} times to {width}×{height}; a larger one is sharper",
                w=w,
                h=h,
                scale=scale,
                width=width,
                height=height,
            )
        )
    if fit == "crop" and (kept := shown_w * shown_h / (w * h)) < 0.5:
        cautions.append(
            Message(
                "image_cut",
                "crop keeps {kept:.0%} of the still ({w}×{h}); fit pad keeps all of it",
                kept=kept,
                w=w,
                h=h,
            )
        )
    return cautions


def is_address(source: str) -> bool:
    """Whether a source is an address rather than a path."""
    return _ADDRESS.match(source) is not None


def fetch_image(url: str) -> EncodedImage:
    """The file behind an http or https address.

    Raises:
        InvalidImage: as `fetch`.
    """
    from kinema.media.fetch import fetch

    parts = urlsplit(url)
    data = fetch(url)
    stem = PurePosixPath(unquote(parts.path)).stem
    label = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return EncodedImage(data, label, plain_name(stem))


def plain_name(text: str, longest: int = 100) -> str | None:
    """A name from outside, or a sentence, with only characters that are harmless in a file's name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:longest].rstrip("-.") or None


def _read(path: Path) -> bytes:
    """The bytes of a file that exists, is a file, and is neither empty nor too large."""
    try:
        if path.is_dir():
            raise InvalidImage(f"{path} is a folder; give one picture inside it")
        if not path.exists():
            raise InvalidImage(f"there is no file {path}; check the name and the folder")
        if not path.is_file():
            raise InvalidImage(f"{path} is not a regular file; save the picture to one")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise InvalidImage(_too_large(size, str(path)))
        return path.read_bytes()
    except OSError as error:
        raise InvalidImage(f"{path} can't be read ({error.strerror}); check its name and permissions") from None


@dataclass(frozen=True, slots=True, eq=False)
class _Decoded:
    """An upright RGB image; `facts` are those of the full size, where it is decoded smaller."""

    rgb: Image.Image
    facts: ImageFacts


def _image(decoded: _Decoded, name: str | None) -> InputImage:
    """The still with its hash."""
    image = decoded.rgb
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    for strip in _strips(image):
        digest.update(strip.tobytes())
    return InputImage(image, digest.hexdigest(), decoded.facts.warnings, name)


def _decoded(data: bytes, label: str, at_least: int | None = None) -> _Decoded:
    """An encoded picture, checked and decoded; `label` names it in messages.

    Where `at_least` is given, a JPEG may be decoded at a fraction of its size, if no side gets smaller than that.
    """
    if not data:
        raise InvalidImage(Message("image_empty", "{label} is empty; get the picture again", label=label))
    if len(data) > MAX_BYTES:
        raise InvalidImage(_too_large(len(data), label))
    try:
        with warnings.catch_warnings(record=True) as noticed:
            warnings.simplefilter("always")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = _opened(data, label)
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
        raise InvalidImage(_unknown(data, label)) from None
    except Exception as error:  # noqa: BLE001 - Pillow's readers meet damage with nearly any exception
        raise InvalidImage(_damaged(label, error)) from None
    cautions = []
    if any("EXIF" in str(warning.message) for warning in noticed):
        cautions.append(_damaged_exif(label))
    # A phone's JPEG may carry a second picture (MPO: depth, gain map); that is no animation.
    if image.format in {"PNG", "WEBP"} and getattr(image, "n_frames", 1) > 1:
        cautions.append(Message("image_animated", "{label}: it is animated; its first frame is used", label=label))
    return _upright(image, label, cautions, at_least=at_least, own=True)


def _opened(data: bytes, label: str) -> Image.Image:
    """A picture of one of our kinds, whose structure is sound; its pixels are not decoded yet."""
    if data.startswith(b"\xff\xd8\xff"):
        data = checked_jpeg(data, label)
    png = png_structure(data, label) if data.startswith(b"\x89PNG\r\n\x1a\n") else None
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if png is None:
        return image
    _bounded(image, label)
    check_png_rows(data, png)
    image.verify()  # Pillow checks a PNG's checksums only here, and then wants it opened again
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _upright(
    image: Image.Image,
    label: str,
    cautions: Sequence[Message] = (),
    *,
    at_least: int | None = None,
    own: bool = False,
) -> _Decoded:
    """An opened picture: bounded, decoded, RGB and upright. `own` is one that no one else needs, so it is let go."""
    _bounded(image, label)
    if image.mode == "F":
        raise InvalidImage(f"{label} has floating-point pixels; scale them to 0–255 and convert it to mode RGB")
    width, height = image.size
    try:
        if at_least is not None and own:
            image.draft(None, (at_least, at_least))
        image = _loaded(image)
        turn, more = _turn(image, label)
        rgb, others = _rgb(image, label)
        if own:
            image.close()
        if turn is not None:
            rgb = rgb.transpose(turn)
    except Exception as error:  # noqa: BLE001 - as above
        raise InvalidImage(_damaged(label, error)) from None
    size = (height, width) if turn in _ON_ITS_SIDE else (width, height)
    return _Decoded(rgb, ImageFacts(size, (*cautions, *more, *others)))


def _loaded(image: Image.Image) -> Image.Image:
    """The picture, decoded.

    A WebP's frame is taken as it is: Pillow would copy it while the decoder still holds two more, 640 MB in all for
    40 megapixels.
    """
    if not isinstance(image, WebPImageFile):
        image.load()
        return image
    pixels, _, _ = image._get_next()  # noqa: SLF001 - there is no public way
    image._decoder = None  # noqa: SLF001 - likewise
    frame = Image.frombuffer(image.rawmode, image.size, pixels, "raw", image.rawmode, 0, 1)
    frame.info = image.info
    return frame


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """The picture from top to bottom, few rows at a time: what is made of it needs no copy of the whole."""
    for top in range(0, image.height, STRIP_ROWS):
        yield image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height)))


def _bounded(image: Image.Image, label: str) -> None:
    """Refuse a picture that is too large or too small, by its header alone."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InvalidImage(
            Message(
                "image_too_wide",
                "{label} has {width}×{height} = {megapixels:.1f} megapixels and at most {most} are read; shrink it",
                label=label,
                width=width,
                height=height,
                megapixels=width * height / MILLION,
                most=MAX_PIXELS // MILLION,
            )
        )
    if min(width, height) < MIN_SIDE:
        raise InvalidImage(
            Message(
                "image_too_small",
                "{label} has {width}×{height} pixels and at least {least}×{least} are needed; give a larger picture",
                label=label,
                width=width,
                height=height,
                least=MIN_SIDE,
            )
        )


def _turn(image: Image.Image, label: str) -> tuple[Image.Transpose | None, list[Message]]:
    """What turns the picture upright, by its EXIF, and what could not be followed."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1)), []
    except Exception:  # noqa: BLE001 - a damaged EXIF block spoils the orientation, not the picture
        return None, [_damaged_exif(label)]


def _rgb(image: Image.Image, label: str) -> tuple[Image.Image, list[Message]]:
    """A copy of the picture in 8-bit sRGB, and what could not be followed.

    Nothing of its metadata (places, names) is in the copy.
    """
    cautions = []
    profile = image.info.get("icc_profile")
    try:
        transform = _to_srgb("CMYK" if image.mode == "CMYK" else "RGB", profile) if profile else None
    except (OSError, ImageCms.PyCMSError):
        transform = None
        cautions.append(
            Message("colours_damaged", "{label}: its colour profile is damaged and was ignored", label=label)
        )
    rgb = Image.new("RGB", image.size)
    top = 0
    for strip in _strips(image):
        plain = strip if strip.mode == "CMYK" else _plain(strip)
        if transform is not None:
            plain = ImageCms.applyTransform(plain, transform) or plain
        rgb.paste(plain.convert("RGB"), (0, top))
        top += strip.height
    return rgb, cautions


def _plain(image: Image.Image) -> Image.Image:
    """Any mode as 8-bit RGB; alpha over white."""
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip at 255
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB") if image.mode != "RGB" else image


def _to_srgb(mode: str, profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """What takes a picture (RGB or CMYK) from its embedded colour profile to sRGB, where it is not there already."""
    embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    described = embedded.profile
    if described.xcolor_space.strip() != mode or "srgb" in (described.profile_description or "").lower():
        return None  # sRGB already, or a profile of some other kind of picture
    return ImageCms.buildTransform(embedded, ImageCms.createProfile("sRGB"), mode, "RGB")


def _from_array(array: np.ndarray[Any, np.dtype[Any]]) -> Image.Image:
    """A picture from uint8 [h, w], [h, w, 3] or [h, w, 4]; anything else gets the line that would mend it."""
    shape = list(array.shape)
    if array.dtype.kind == "f":
        raise InvalidImage(
            f"the array is {array.dtype}; give (array * 255).round().astype('uint8') if it runs from 0 to 1"
        )
    if array.dtype == np.uint16:
        raise InvalidImage("the array is uint16; give (array // 257).astype('uint8')")
    if array.dtype != np.uint8:
        raise InvalidImage(f"the array is {array.dtype}; give uint8, from 0 to 255")
    if array.ndim == 3 and shape[2] == 1:
        raise InvalidImage(f"the array has shape {shape}; give array[:, :, 0]")
    if array.ndim == 4:
        raise InvalidImage(f"the array has shape {shape}; give one picture of the batch, array[0]")
    if array.ndim == 3 and shape[0] in {3, 4} and shape[2] not in {3, 4}:
        raise InvalidImage(f"the array has shape {shape}; channels come last: give array.transpose(1, 2, 0)")
    if array.ndim != 2 and (array.ndim != 3 or shape[2] not in {3, 4}):
        raise InvalidImage(f"the array has shape {shape}; give [height, width], or [height, width, 3 or 4]")
    if 0 in shape:
        raise InvalidImage(f"the array has shape {shape} and so no pixels; give at least {MIN_SIDE}×{MIN_SIDE}")
    return Image.fromarray(np.ascontiguousarray(array))


def _too_large(size: int, label: str) -> Message:
    """The message for more bytes than are read."""
    return Message(
        "image_too_heavy",
        "{label} has {megabytes:.0f} MB and at most {most} are read; shrink it",
        label=label,
        megabytes=size / MILLION,
        most=MAX_BYTES // MILLION,
    )


def _damaged(label: str, error: Exception) -> Message:
    """The message for a picture that is of a known kind but can't be decoded."""
    if isinstance(error, MemoryError):
        return out_of_memory(label)
    return Message(
        "image_damaged",
        "{label} is damaged or cut short ({reason}); get the picture again, or save it anew as PNG",
        label=label,
        reason=str(error),
    )


def out_of_memory(label: str) -> Message:
    """The message for a picture that may be sound, and does not fit in memory."""
    return Message(
        "image_out_of_memory", "{label} needs more memory to be decoded than there is; shrink it", label=label
    )


def _damaged_exif(label: str) -> Message:
    return Message("exif_damaged", "{label}: its EXIF data are damaged, so it may lie on its side", label=label)


def _unknown(data: bytes, label: str) -> Message:
    """The message for bytes that are no JPEG, PNG or WebP: what they seem to be, and what to do."""
    head = data[:1024].lstrip().lower()
    for offset, magic, kind in _OURS:
        if data.startswith(magic, offset):
            return _damaged(label, ValueError(f"it starts like a {kind}"))
    seems, remedy = next((o[2:] for o in _OTHERS if data.startswith(o[1], o[0])), (None, None))
    if head.startswith((b"<!doctype html", b"<html")):
        seems = Message("a_web_page", "a web page")
        remedy = Message("give_its_address", "give the address of the picture itself")
    elif b"<svg" in head:
        seems, remedy = Message("an_svg", "an SVG drawing"), _EXPORT
    if seems is None:
        return Message(
            "image_unknown", "{label} is no picture that is known here; give a JPEG, PNG or WebP", label=label
        )
    return Message(
        "image_of_another_kind",
        "{label} seems to be {seems}; {remedy} (JPEG, PNG and WebP are read)",
        label=label,
        seems=seems,
        remedy=remedy,
    )
