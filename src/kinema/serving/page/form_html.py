"""What stands around the form, as HTML: head and foot, the still as it will be fitted, and what it will take."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from kinema.errors import KinemaError
from kinema.media.image import crop_box
from kinema.serving.client_messages import refusal_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kinema.serving.page.translations.labels import Labels
    from kinema.values import Fit, VideoRequest

# Line icons on a grid of 24, drawn for this page.
_ICONS = {
    "image": "M4 5h16v14H4z M4 16l4.5-4.5 4 4 3-3L20 17 M15.5 9.5h.01",
    "film": "M3 5h18v14H3z M10 9l5 3-5 3z",
    "use": "M4 7h10 M18 7h2 M4 17h2 M10 17h10 M16 5v4 M8 15v4",
    "download": "M12 4v11 M7 11l5 5 5-5 M5 20h14",
    "recipe": "M6 3h9l4 4v14H6z M9 11h7 M9 15h7",
    "rename": "M4 20l1-4L16.5 4.5l3 3L8 19z M14 7l3 3",
    "pin": "M9 3h6 M10 3v7l-3 4h10l-3-4V3 M12 14v7",
    "delete": "M5 7h14 M10 7V4h4v3 M7 7l1 13h8l1-13",
    "cancel": "M6 6l12 12 M18 6L6 18",
}


def icon(name: str) -> str:
    """A decoration: what it stands for is written beside it."""
    return (
        f'<svg class="k-icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d="{_ICONS[name]}"/></svg>'
    )


def header(words: Labels, others: Iterable[Labels]) -> str:
    """The page's head: what this is, and the other languages."""
    switches = "".join(
        f'<a class="k-language" href="../{other.language}/" lang="{other.language}" hreflang="{other.language}" '
        f'data-language="{other.language}">{other.name}</a>'
        for other in others
    )
    return (
        '<div class="k-header"><div><h1>Kinema</h1>'
        f"<p>{escape(words.tagline)}</p></div>"
        f'<nav aria-label="{words.switch}"><a href="../../">{words.api}</a>{switches}</nav></div>'
    )


def footer(words: Labels) -> str:
    """What everyone has to know who uses this."""
    return f'<p class="k-note">{escape(words.ai_note)}</p>'


def told(message: str, words: Labels) -> str:
    """What the library said, in the page's language, or marked as English."""
    said = words.said(message)
    return english(message, words) if said is None else escape(said)


def english(text: str, words: Labels) -> str:
    """A text in English: where the page is not, browsers and screen readers are told so."""
    return escape(text) if words.language == "en" else f'<span lang="en">{escape(text)}</span>'


def why(fault: KinemaError, words: Labels) -> str:
    """Why something is refused: as a whole sentence, else in general, with the English beside it."""
    message = refusal_message(fault)
    general = words.faults.get(fault.code)
    if general is None or words.said(message) is not None:
        return told(message, words)
    details = (
        f" {english(message, words)}" if message == str(fault) else ""
    )  # else it says no more than the general one
    return escape(general) + details


def empty_frame(words: Labels, fault: str = "", *, in_english: bool = False) -> str:
    """Where a still is dropped; `fault` says why the last one was refused, in the page's language or in English."""
    reason = english(fault, words) if in_english else escape(fault)
    said = f'<p class="k-fault" role="alert">{escape(words.bad_image)}: {reason}</p>' if fault else ""
    return (
        f'<div class="k-image k-empty" {_said_by_script(words)}>'
        f'{icon("image")}<p class="k-drop">{escape(words.drop)}</p>'
        f'<button type="button" class="k-button k-choose" data-choose>{escape(words.choose)}</button>'
        f'<p class="k-hint">{escape(words.drop_hint)}</p>{said}{_examples(words)}</div>'
    )


def _examples(words: Labels) -> str:
    """Images to try without one of one's own."""
    buttons = "".join(
        f'<button type="button" class="k-example" data-example="{name}" data-title="{escape(title)}" '
        f'title="{escape(title)}"><img src="../static/examples/{name}.jpg" alt="{escape(title)}"></button>'
        for name, title in words.examples.items()
    )
    return f'<p class="k-hint">{escape(words.try_example)}</p><div class="k-examples">{buttons}</div>'


def frame(image: str, size: tuple[int, int], request: VideoRequest, words: Labels) -> str:
    """The still (`size` is its own) as the engine will fit it, and what that costs."""
    width, height, fit = request.width, request.height, request.fit
    alt = escape(words.crop_alt)
    whole = _whole(image, size, request) if fit == "crop" else ""
    return (
        f'<div class="k-image" {_said_by_script(words)}>'
        f'<div class="k-screen" style="aspect-ratio: {width} / {height}">'
        f'<img src="{fitted(image, width, height, fit)}" alt="{alt}" width="{width}" height="{height}">{whole}'
        f'<div class="k-over-screen">'
        f'<button type="button" class="k-button" data-choose>{escape(words.replace)}</button>'
        f'<button type="button" class="k-button" data-remove>{escape(words.remove)}</button></div></div>'
        f'<p class="k-hint">{escape(_fitting(size, request, words))}</p></div>'
    )


def _said_by_script(words: Labels) -> str:
    """What page.js says while a still is on its way."""
    said = {"reading": words.reading, "large": words.too_large, "unreachable": words.unreachable}
    return " ".join(f'data-{name}="{escape(text)}"' for name, text in said.items())


def _whole(image: str, size: tuple[int, int], request: VideoRequest) -> str:
    """The whole picture, small in a corner, with what is kept of it outlined."""
    left, top, right, bottom = crop_box(size, request.width, request.height)
    if (right - left) * (bottom - top) > 0.97 * size[0] * size[1]:
        return ""
    scale = 160 / max(size)
    small = max(64, round(size[0] * scale)), max(64, round(size[1] * scale))
    box = f"left: {left / size[0]:.2%}; top: {top / size[1]:.2%}; right: {1 - right / size[0]:.2%}; "
    return (
        f'<div class="k-whole" style="aspect-ratio: {size[0]} / {size[1]}" aria-hidden="true">'
        f'<img src="{fitted(image, *small, "stretch")}" alt="">'
        f'<i style="{box}bottom: {1 - bottom / size[1]:.2%}"></i></div>'
    )


def _fitting(size: tuple[int, int], request: VideoRequest, words: Labels) -> str:
    begins = words.crop_note.format(f"{request.width}×{request.height}")
    match request.fit:
        case "pad":
            return f"{begins} {words.pad_note}"
        case "stretch":
            return f"{begins} {words.stretch_note}"
    left, top, right, bottom = crop_box(size, request.width, request.height)
    kept = (right - left) * (bottom - top) / (size[0] * size[1])
    return f"{begins} {words.crop_whole if kept > 0.99 else words.crop_kept.format(f'{kept:.0%}')}"


def fitted(image: str, width: int, height: int, fit: Fit) -> str:
    """Where the server shows a still as the engine fits it."""
    return f"../images/{image}?width={width}&amp;height={height}&amp;fit={fit}"


def note(request: VideoRequest, seconds: float | None, waiting: int, warnings: Sequence[str], words: Labels) -> str:
    """What to know before Generate is pressed: length, time, queue, cautions."""
    long = words.seconds_long.format(request.num_frames, f"{request.num_frames / request.frame_rate:.1f}")
    takes = words.takes_unknown if seconds is None else words.takes.format(words.duration(seconds))
    waits = f" {words.waits.format(waiting)}" if waiting else ""
    listed = "".join(f"<li>{told(warning, words)}</li>" for warning in warnings)
    careful = f'<div class="k-warnings"><p>{escape(words.warnings)}</p><ul>{listed}</ul></div>' if listed else ""
    return f'<p class="k-estimate"><strong>{escape(long)}</strong> {escape(takes + waits)}</p>{careful}'


def refusal(reason: str | KinemaError, words: Labels) -> str:
    """Why nothing was submitted, and what to do: in the page's own words, or as the library said it."""
    said = why(reason, words) if isinstance(reason, KinemaError) else escape(reason)
    return f'<p class="k-fault" role="alert"><strong>{escape(words.refused)}.</strong> {said}</p>'
