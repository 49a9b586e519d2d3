"""Kinds of files by their first bytes, for the message about a file that is not a supported image."""

from __future__ import annotations

from kinema.messages import Message

_PNG = Message("save_as_png", "save it as PNG")
_PNG_OR_JPEG = Message("save_as_png_or_jpeg", "save it as PNG or JPEG")
_EXPORT = Message("export_as_png", "export it as PNG")
_ONE_FRAME = Message("save_a_frame", "save one of its frames as PNG")
_TIFF = Message("a_tiff", "a TIFF or camera raw image")
_JPEG_XL = Message("a_jpeg_xl", "a JPEG XL image")
_VIDEO = Message("a_video", "a video")
# Signatures of unsupported files: (offset, bytes, kind, remedy).
_UNSUPPORTED = (
    (0, b"GIF8", Message("a_gif", "a GIF"), _ONE_FRAME),
    (0, b"%PDF", Message("a_pdf", "a PDF document"), Message("export_the_page", "export the page as PNG")),
    (0, b"BM", Message("a_bmp", "a BMP image"), _PNG),
    (0, b"II*\0", _TIFF, _PNG_OR_JPEG),
    (0, b"MM\0*", _TIFF, _PNG_OR_JPEG),
    (0, b"8BPS", Message("a_psd", "a Photoshop document"), _EXPORT),
    (0, b"\xff\x0a", _JPEG_XL, _PNG_OR_JPEG),
    (0, b"\0\0\0\x0cJXL ", _JPEG_XL, _PNG_OR_JPEG),
    (0, b"\0\0\0\x0cjP  ", Message("a_jpeg_2000", "a JPEG 2000 image"), _PNG_OR_JPEG),
    (0, b"\0\0\1\0", Message("an_icon", "an icon"), _PNG),
    (
        0,
        b"PK\3\4",
        Message("a_zip", "a ZIP archive or office document"),
        Message("take_it_out", "extract the image from it"),
    ),
    (0, b"\x1aE\xdf\xa3", _VIDEO, _ONE_FRAME),
    (4, b"ftyp", _VIDEO, _ONE_FRAME),
)


def unknown_image(data: bytes, label: str) -> Message:
    """Return the message for bytes of no supported format: the detected kind and a remedy."""
    head = data[:1024].lstrip().lower()
    seems, remedy = next((o[2:] for o in _UNSUPPORTED if data.startswith(o[1], o[0])), (None, None))
    if head.startswith((b"<!doctype html", b"<html")):
        seems = Message("a_web_page", "a web page")
        remedy = Message("give_its_address", "download the image itself, or use its URL")
    elif b"<svg" in head:
        seems, remedy = Message("an_svg", "an SVG drawing"), _EXPORT
    if seems is None:
        return Message(
            "image_unknown", "{label} is not a supported image; use a JPEG, PNG, WebP, HEIC or AVIF", label=label
        )
    return Message(
        "image_of_another_kind",
        "{label} seems to be {seems}; {remedy} (supported are JPEG, PNG, WebP, HEIC and AVIF)",
        label=label,
        seems=seems,
        remedy=remedy,
    )
