"""The texts of the page. english.py and korean.py each define all of them; mypy reports a missing one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kinema.messages import Message
from kinema.models.catalog import CATALOG, IMAGE_MODELS

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Labels:
    """All texts of the page in one language; each `{}` is filled in where the text is shown.

    The library's own messages are English. `messages` holds their translations by `Message.code`. `errors` holds a
    general description by error code, for errors whose message has no translation.
    """

    language: str  # the value of <html lang>
    name: str  # the language's name in that language
    tagline: str
    source: str
    from_image: str
    from_prompt: str
    drop: str
    add_image: str  # in place of `drop` on a touch screen
    paste_hint: str
    image_formats: str
    try_example: str
    examples: Mapping[str, str]  # by file name in static/examples
    last_image: str
    add_last_image: str
    last_image_hint: str
    choose: str
    take_photo: str
    replace: str
    remove: str
    uploading: str
    input_alt: str
    input_note: str
    crop_note_whole: str
    crop_note_percent: str
    crop_note_move: str
    pad_note: str
    stretch_note: str
    prompt_hint: str
    generate: str
    new_seed: str
    fix_seed: str
    demo: str
    demo_note: str
    automatic: str
    same_as_fps: str
    follows_image: str
    follows_length: str
    shape: str
    shapes: Mapping[str, str]
    length: str
    length_help: str
    more_parameters: str
    more_parameters_hint: str
    frames_and_seconds: str
    fits: Mapping[str, str]
    estimate: str
    estimate_unknown: str
    jobs_ahead: str
    warnings: str
    cannot_start: str
    error: str  # title of the message about an error
    internal_error: str
    need_image: str
    need_prompt: str
    bad_image: str
    too_large: str
    unreachable: str
    details: str
    connection_lost: str
    panel_empty: str
    close_page_hint: str
    queued: str
    queued_next: str
    starting: str
    step: str
    stages: Mapping[str, str]
    completed: str
    failed: str
    cancelled: str
    parameters_kept: str
    time_left: str
    time_left_unknown: str
    cancel: str
    preview_alt: str
    video_alt: str
    generated_in: str
    ai_generated: str
    ai_note: str
    watermark_note: str
    credentials_note: str
    notices: str
    notices_blocked: str
    reuse: str
    extension_lost: str
    first_part_lost: str
    upscale_lost: str
    use_last_frame: str
    extend: str
    seconds_to_add: str
    download: str
    recipe: str
    rename: str
    new_title: str
    save: str
    cancel_rename: str
    pin: str
    unpin: str
    delete: str
    confirm_delete: str
    cancel_delete: str
    workers: str
    no_workers: str
    worker_count: str  # number, status
    worker_states: Mapping[str, str]
    worker_columns: Mapping[str, str]
    gpus: str
    server_problem: str
    gallery: str
    gallery_empty: str
    show: str
    show_more: str
    seed: str
    untitled: str
    api: str
    verify: str
    switch: str
    second: str
    minute: str
    hour: str
    ago: str
    just_now: str
    parameter_names: Mapping[str, str]
    parameter_help: Mapping[str, str]
    messages: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)

    def duration(self, seconds: float) -> str:
        """Format a duration in seconds, minutes or hours, rounded to suit its size."""
        if seconds < 90:
            return self.second.format(max(1, round(seconds)))
        if seconds < 90 * 60:
            return self.minute.format(round(seconds / 60))
        return self.hour.format(f"{seconds / 3600:.1f}")

    def model_label(self, name: str) -> str:
        """Return a model's name, marked if it is a demo model."""
        return f"{name} ({self.demo})" if is_demo(name) else name

    def model_help(self, name: str) -> str:
        """Return the explanation shown below the model selector."""
        return self.demo_note.format(name) if is_demo(name) else self.parameter_help["model"]

    def translate(self, message: object) -> str | None:
        """Return a library message in this language; None if it has no translation.

        Parameters are named by their labels in the form, in English too.
        """
        if not isinstance(message, Message):
            return None
        template = self.messages.get(message.code, message.english if self.language == "en" else None)
        if template is None:
            return None
        names = {**self.parameter_names, "title": self.new_title, "seconds": self.length}
        values: dict[str, Any] = {}
        for name, value in message.values.items():
            if name in ("name", "other"):
                values[name] = names.get(value, value)
            elif isinstance(value, Message):
                values[name] = self.translate(value)
                if values[name] is None:
                    return None
            else:
                values[name] = value
        return template.format(**values)


def is_demo(model: str) -> bool:
    """Return whether the model is one of the small models included in the package."""
    entry = CATALOG.get(model) or IMAGE_MODELS.get(model)
    return entry is not None and entry.demo
