"""What the page has words for; english.py and korean.py say them, both whole, or mypy would complain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kinema.messages import Message
from kinema.models.catalog import CATALOG, IMAGE_MODELS

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Labels:
    """All texts of the page in one language; `{}` are filled in where they are shown.

    What the library says, it says in English: `messages` has it in another language by `Message.code`, and `faults`
    says why in general, by an error's code, where there is no more than that.
    """

    language: str  # as in <html lang>
    name: str  # the language's own name
    tagline: str
    form: str
    source: str
    from_image: str
    from_prompt: str
    drop: str
    drop_hint: str
    try_example: str
    examples: Mapping[str, str]  # by the name of the file in static/examples
    choose: str
    replace: str
    remove: str
    reading: str
    crop_alt: str
    crop_note: str
    crop_whole: str
    crop_kept: str
    pad_note: str
    stretch_note: str
    prompt_hint: str
    generate: str
    dice: str
    lock: str
    demo: str
    demo_note: str
    own: str
    fps_own: str
    more: str
    more_hint: str
    seconds_long: str
    fits: Mapping[str, str]
    takes: str
    takes_unknown: str
    waits: str
    warnings: str
    refused: str
    defect: str
    need_image: str
    need_prompt: str
    bad_image: str
    too_large: str
    unreachable: str
    details: str
    lost: str
    video: str
    empty: str
    empty_hint: str
    queued: str
    next: str
    starting: str
    step: str
    stages: Mapping[str, str]
    done: str
    failed: str
    cancelled: str
    kept: str
    left: str
    left_unknown: str
    cancel: str
    preview_alt: str
    video_alt: str
    made_in: str
    ai_made: str
    ai_note: str
    use: str
    download: str
    recipe: str
    rename: str
    new_title: str
    save: str
    no_change: str
    pin: str
    unpin: str
    delete: str
    delete_sure: str
    keep: str
    gallery: str
    gallery_empty: str
    show: str
    show_more: str
    seed: str
    untitled: str
    api: str
    switch: str
    second: str
    minute: str
    hour: str
    ago: str
    now: str
    labels: Mapping[str, str]
    explained: Mapping[str, str]
    messages: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)

    def duration(self, seconds: float) -> str:
        """A length of time as a person says it: never finer than its size deserves."""
        if seconds < 90:
            return self.second.format(max(1, round(seconds)))
        if seconds < 90 * 60:
            return self.minute.format(round(seconds / 60))
        return self.hour.format(f"{seconds / 3600:.1f}")

    def model(self, name: str) -> str:
        """A model's name, and whether it only shows what models of its kind do."""
        return f"{name} ({self.demo})" if is_demo(name) else name

    def about_model(self, name: str) -> str:
        """What to know of a model before it is chosen."""
        return self.demo_note.format(name) if is_demo(name) else self.explained["model"]

    def said(self, message: object) -> str | None:
        """What the library said, in this language; None where there are no words for it, and English has to do.

        Settings are called as the form calls them, in English too.
        """
        if not isinstance(message, Message):
            return None
        template = self.messages.get(message.code, message.english if self.language == "en" else None)
        if template is None:
            return None
        values: dict[str, Any] = {}
        for name, value in message.values.items():
            if name in ("name", "other"):
                values[name] = self.labels.get(value, value)
            elif isinstance(value, Message):
                values[name] = self.said(value)
                if values[name] is None:
                    return None
            else:
                values[name] = value
        return template.format(**values)


def is_demo(model: str) -> bool:
    """Whether it comes with Kinema, small enough for every computer."""
    entry = CATALOG.get(model) or IMAGE_MODELS.get(model)
    return entry is not None and entry.folder is not None
