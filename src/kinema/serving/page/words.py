"""What the page has words for; english.py and korean.py say them, both whole, or mypy would complain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Words:
    """All texts of the page in one language; `{}` are filled in where they are shown."""

    language: str  # as in <html lang>
    name: str  # the language's own name
    tagline: str
    form: str
    source: str
    from_still: str
    from_sentence: str
    drop: str
    drop_hint: str
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
    sentence_hint: str
    generate: str
    dice: str
    lock: str
    own: str
    fps_own: str
    more: str
    more_hint: str
    seconds_long: str
    fits: Mapping[str, str]
    takes: str
    takes_unknown: str
    waits: str
    cautions: str
    refused: str
    need_still: str
    need_sentence: str
    bad_still: str
    too_large: str
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
    delete: str
    delete_sure: str
    keep: str
    gallery: str
    gallery_empty: str
    show: str
    show_more: str
    seed: str
    api: str
    switch: str
    second: str
    minute: str
    hour: str
    ago: str
    now: str
    labels: Mapping[str, str]
    explained: Mapping[str, str]

    def duration(self, seconds: float) -> str:
        """A length of time as a person says it: never finer than its size deserves."""
        if seconds < 90:
            return self.second.format(max(1, round(seconds)))
        if seconds < 90 * 60:
            return self.minute.format(round(seconds / 60))
        return self.hour.format(f"{seconds / 3600:.1f}")
