"""HTML around the form: header, footer, image preview, time estimate and errors."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from kinema.errors import KinemaError
from kinema.media.image import crop_box
from kinema.serving.client_messages import error_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kinema.serving.page.translations.labels import Labels
    from kinema.settings import Settings
    from kinema.values import Fit, VideoRequest

# A crop can be moved if it keeps at most this share of the image.
MOVABLE = 0.97
CENTRE = 0.5

# SVG paths of line icons on a 24×24 grid.
_ICONS = {
    "image": "M4 5h16v14H4z M4 16l4.5-4.5 4 4 3-3L20 17 M15.5 9.5h.01",
    "film": "M3 5h18v14H3z M10 9l5 3-5 3z",
    "use": "M4 7h10 M18 7h2 M4 17h2 M10 17h10 M16 5v4 M8 15v4",
    "download": "M12 4v11 M7 11l5 5 5-5 M5 20h14",
    "recipe": "M6 3h9l4 4v14H6z M9 11h7 M9 15h7",
    "rename": "M4 20l1-4L16.5 4.5l3 3L8 19z M14 7l3 3",
    "pin": "M9 3h6 M10 3v7l-3 4h10l-3-4V3 M12 14v7",
    "delete": "M5 7h14 M10 7V4h4v3 M7 7l1 13h8l1-13",
    "last": "M4 6h12v12H4z M20 6v12 M8 12h5 M11 9.5l2.5 2.5-2.5 2.5",
    "extend": "M4 7h9v10H4z M16 12h5 M18.5 9.5v5",
    "cancel": "M6 6l12 12 M18 6L6 18",
}


def icon(name: str) -> str:
    """Return an icon as inline SVG, hidden from screen readers."""
    return (
        f'<svg class="k-icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d="{_ICONS[name]}"/></svg>'
    )


def header(labels: Labels, others: Iterable[Labels]) -> str:
    """Return the page header with links to the detector, the API and the other languages."""
    switches = "".join(
        f'<a class="k-language" href="../{other.language}/" lang="{other.language}" hreflang="{other.language}" '
        f'data-language="{other.language}">{other.name}</a>'
        for other in others
    )
    return (
        '<div class="k-header"><div><h1>Kinema</h1>'
        f"<p>{escape(labels.tagline)}</p></div>"
        f'<nav aria-label="{labels.switch}"><a href="../verify">{labels.verify}</a>'
        f'<a href="../../">{labels.api}</a>{switches}</nav></div>'
    )


def footer(labels: Labels, settings: Settings) -> str:
    """Return the notice that all videos are AI-generated, and by what a program can tell, as far as it is on."""
    notes = [labels.ai_note]
    notes += [labels.watermark_note] * (settings.watermark != "off")
    notes += [labels.credentials_note] * (settings.credentials != "off")
    return f'<p class="k-note">{escape(" ".join(notes))}</p>'


def message_html(message: str, labels: Labels) -> str:
    """Return a library message in the page's language, or in English and marked as English."""
    translation = labels.translate(message)
    return english_html(message, labels) if translation is None else escape(translation)


def english_html(text: str, labels: Labels) -> str:
    """Return an English text, marked with lang="en" on pages in other languages."""
    return escape(text) if labels.language == "en" else f'<span lang="en">{escape(text)}</span>'


def error_html(error: KinemaError, labels: Labels) -> str:
    """Return an error's message in the page's language.

    Without a translation: the general description of its code, followed by the English message.
    """
    message = error_message(error)
    general = labels.errors.get(error.code)
    if general is None or labels.translate(message) is not None:
        return message_html(message, labels)
    # A message that error_message replaced says no more than the general description.
    details = f" {english_html(message, labels)}" if message == str(error) else ""
    return escape(general) + details


def notices(labels: Labels) -> str:
    """Return the switch of browser notices, which page.js shows where the browser has them."""
    return (
        f'<label class="k-notices k-hint" hidden data-blocked="{escape(labels.notices_blocked)}">'
        f'<input type="checkbox"><span>{escape(labels.notices)}</span></label>'
    )


def empty_image_frame(labels: Labels, error: str = "", *, in_english: bool = False) -> str:
    """Return the drop area for the input image.

    `error` is the reason why the last image was rejected, in English if `in_english`, else in the page's language.
    """
    reason = english_html(error, labels) if in_english else escape(error)
    error_box = f'<p class="k-error" role="alert">{escape(labels.bad_image)}: {reason}</p>' if error else ""
    texts = {name: escape(getattr(labels, name)) for name in ("choose", "take_photo", "paste_hint", "image_formats")}
    return (
        f'<div class="k-image k-empty" {_script_texts(labels)}>'
        f'{icon("image")}<p class="k-drop k-mouse">{escape(labels.drop)}</p>'
        f'<p class="k-drop k-touch">{escape(labels.add_image)}</p><div class="k-choices">'
        f'<button type="button" class="k-button k-choose" data-choose>{texts["choose"]}</button>'
        f'<button type="button" class="k-button k-choose k-touch" data-camera>{texts["take_photo"]}</button></div>'
        f'<p class="k-hint"><span class="k-mouse">{texts["paste_hint"]} · </span>{texts["image_formats"]}</p>'
        f"{error_box}{_examples(labels)}</div>"
    )


def last_image_frame(image: str | None, request: VideoRequest, labels: Labels) -> str:
    """Return the area for the image at which the video ends."""
    if image is None:
        content = (
            f'<div><button type="button" class="k-button" data-choose>{escape(labels.add_last_image)}</button></div>'
        )
    else:
        content = (
            f'<div class="k-media" style="aspect-ratio: {request.width} / {request.height}">'
            f'<img src="{request_src(image, request)}" alt="{escape(labels.last_image)}"'
            f' width="{request.width}" height="{request.height}">{_media_buttons(labels)}</div>'
        )
    return (
        f'<div class="k-image k-last-image" {_script_texts(labels)}>{content}'
        f'<p class="k-hint">{escape(labels.last_image_hint)}</p></div>'
    )


def _media_buttons(labels: Labels) -> str:
    """Return the buttons on a shown image that replace and remove it."""
    return (
        f'<div class="k-media-buttons">'
        f'<button type="button" class="k-button" data-choose>{escape(labels.replace)}</button>'
        f'<button type="button" class="k-button" data-remove>{escape(labels.remove)}</button></div>'
    )


def _examples(labels: Labels) -> str:
    """Return the buttons of the example images."""
    buttons = "".join(
        f'<button type="button" class="k-example" data-example="{name}" data-title="{escape(title)}" '
        f'title="{escape(title)}"><img src="../static/examples/{name}.jpg" alt="{escape(title)}"></button>'
        for name, title in labels.examples.items()
    )
    return f'<p class="k-hint">{escape(labels.try_example)}</p><div class="k-examples">{buttons}</div>'


def image_frame(image: str, size: tuple[int, int], request: VideoRequest, labels: Labels) -> str:
    """Return the image as the engine fits it, with a note on what is cropped, padded or stretched.

    `size` is the width and height of the original image in pixels.
    """
    width, height = request.width, request.height
    alt = escape(labels.input_alt)
    thumbnail = _crop_outline(image, size, request) if request.fit == "crop" else ""
    mover = _crop_mover(image, size, request, labels) if thumbnail else ""
    return (
        f'<div class="k-image" {_script_texts(labels)}>'
        f'<div class="k-media" style="aspect-ratio: {width} / {height}">'
        f'<img src="{request_src(image, request)}" alt="{alt}" width="{width}" height="{height}"{mover}>{thumbnail}'
        f"{_media_buttons(labels)}</div>"
        f'<p class="k-hint">{escape(_fit_note(size, request, labels))}</p></div>'
    )


def _script_texts(labels: Labels) -> str:
    """Return the texts that page.js shows while an image is uploaded, as data attributes."""
    texts = {"uploading": labels.uploading, "too-large": labels.too_large, "unreachable": labels.unreachable}
    return " ".join(f'data-{name}="{escape(text)}"' for name, text in texts.items())


def _crop_outline(image: str, size: tuple[int, int], request: VideoRequest) -> str:
    """Return a thumbnail of the whole image with the crop outlined; empty if nearly all of it is kept."""
    left, top, right, bottom = crop_box(size, request.width, request.height, request.crop_position)
    if (right - left) * (bottom - top) > MOVABLE * size[0] * size[1]:
        return ""
    scale = 160 / max(size)
    small = max(64, round(size[0] * scale)), max(64, round(size[1] * scale))
    box = f"left: {left / size[0]:.2%}; top: {top / size[1]:.2%}; right: {1 - right / size[0]:.2%}; "
    return (
        f'<div class="k-whole" style="aspect-ratio: {size[0]} / {size[1]}" aria-hidden="true">'
        f'<img src="{fitted_src(image, *small, "stretch")}" alt="">'
        f'<i style="{box}bottom: {1 - bottom / size[1]:.2%}"></i></div>'
    )


def _crop_mover(image: str, size: tuple[int, int], request: VideoRequest, labels: Labels) -> str:
    """Return the attributes with which page.js lets the image be dragged, or moved with the arrow keys.

    The crop is the largest box of the video's shape, so it moves along one axis.
    """
    left, top, right, bottom = crop_box(size, request.width, request.height)
    shares = (right - left) / size[0], (bottom - top) / size[1]
    axis = "x" if shares[0] < shares[1] else "y"
    whole = _whole_size(size, request.width, request.height)
    return (
        f' class="k-movable-{axis}" data-axis="{axis}" data-kept="{min(shares):.4f}"'
        f' data-whole="{fitted_src(image, *whole, "stretch")}" role="slider" tabindex="0"'
        f' aria-label="{escape(labels.parameter_names["crop_position"])}" aria-valuemin="0" aria-valuemax="100"'
        f' aria-valuenow="{request.crop_position * 100:g}"'
        f' aria-orientation="{"horizontal" if axis == "x" else "vertical"}"'
    )


def _whole_size(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """Return the size of the whole image at the scale of the video, within the limits of the images route."""
    scale = max(width / size[0], height / size[1])
    return min(2048, max(64, round(size[0] * scale))), min(2048, max(64, round(size[1] * scale)))


def _fit_note(size: tuple[int, int], request: VideoRequest, labels: Labels) -> str:
    note = labels.input_note.format(f"{request.width}×{request.height}")
    match request.fit:
        case "pad":
            return f"{note} {labels.pad_note}"
        case "stretch":
            return f"{note} {labels.stretch_note}"
    left, top, right, bottom = crop_box(size, request.width, request.height)
    kept = (right - left) * (bottom - top) / (size[0] * size[1])
    if kept > 0.99:
        return f"{note} {labels.crop_note_whole}"
    move = f" {labels.crop_note_move}" if kept <= MOVABLE else ""
    return f"{note} {labels.crop_note_percent.format(f'{kept:.0%}')}{move}"


def request_src(image: str, request: VideoRequest) -> str:
    """Return the relative URL, escaped for an HTML attribute, of an image as the engine fits it for a request."""
    source = fitted_src(image, request.width, request.height, request.fit)
    if request.fit != "crop" or request.crop_position == CENTRE:
        return source
    return f"{source}&amp;crop_position={request.crop_position}"


def fitted_src(image: str, width: int, height: int, fit: Fit) -> str:
    """Return the relative URL, escaped for an HTML attribute, of an image at this size."""
    return f"../images/{image}?width={width}&amp;height={height}&amp;fit={fit}"


def estimate_html(
    request: VideoRequest, seconds: float | None, jobs_ahead: int, warnings: Sequence[str], labels: Labels
) -> str:
    """Return what is shown above the Generate button: length, time estimate, queue and warnings."""
    length = labels.frames_and_seconds.format(request.output_frames, f"{request.duration:.1f}")
    time = labels.estimate_unknown if seconds is None else labels.estimate.format(labels.duration(seconds))
    queue = f" {labels.jobs_ahead.format(jobs_ahead)}" if jobs_ahead else ""
    items = "".join(f"<li>{message_html(warning, labels)}</li>" for warning in warnings)
    warnings_box = f'<div class="k-warnings"><p>{escape(labels.warnings)}</p><ul>{items}</ul></div>' if items else ""
    return f'<p class="k-estimate"><strong>{escape(length)}</strong> {escape(time + queue)}</p>{warnings_box}'


def submit_error(error: str | KinemaError, labels: Labels) -> str:
    """Return the error box of a form that can't be submitted."""
    text = error_html(error, labels) if isinstance(error, KinemaError) else escape(error)
    return f'<p class="k-error" role="alert"><strong>{escape(labels.cannot_start)}.</strong> {text}</p>'
