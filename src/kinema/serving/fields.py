"""Loose fields, as forms and JSON bring them, become settings under our own names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidRequest
from kinema.models.catalog import default_parameters
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# What others call our settings.
ALIASES: Mapping[str, str] = {
    "cond_aug": "noise_aug_strength",
    "augmentation_level": "noise_aug_strength",
    "decoding_t": "decode_chunk_size",
    "frames_per_second": "fps",
    "cfg_scale": "max_guidance_scale",
    "guidance_scale": "max_guidance_scale",  # where there is no prompt
    "steps": "num_inference_steps",
}
# With a prompt, what diffusers' text-to-image pipelines call theirs.
PROMPT_ALIASES: Mapping[str, str] = {**ALIASES, "guidance_scale": "image_guidance_scale"}
# What else is understood; each stands for settings of ours.
WORDS: Mapping[str, tuple[str, ...]] = {
    "size": ("width", "height"),
    "seconds": ("num_frames",),
    "motion_scale": ("motion_bucket_id",),
    "video_length": ("num_frames", "model"),
}
_LENGTHS = {"14_frames_with_svd": (14, "svd"), "25_frames_with_svd_xt": (25, "svd-xt")}
_SIZE = re.compile(r"(\d{1,5})\s*[x×]\s*(\d{1,5})", re.IGNORECASE)
_MOST_FRAMES = 128


def is_set(value: object) -> bool:
    """Whether a field says anything: None, an empty string and the word null don't."""
    return value is not None and not (isinstance(value, str) and value.strip() in {"", "null"})


def settings_of(fields: Mapping[str, Any], default_model: Callable[[], str]) -> dict[str, Any]:
    """The settings that these fields mean, `model` always among them; nothing is checked but their words.

    Raises:
        InvalidRequest: naming a field that is not known, said twice, or not to be read.
    """
    given = {name: value for name, value in fields.items() if is_set(value)}
    settings = _renamed(given)
    _check_said_once(given, settings)
    if "video_length" in given:
        settings["num_frames"], settings["model"] = _length(given["video_length"])
    if "model" not in settings:
        settings["model"] = default_model()
    if "size" in given:
        settings["width"], settings["height"] = _size(given["size"])
    if "motion_scale" in given:
        settings["motion_bucket_id"] = round(255 * _number("motion_scale", given["motion_scale"], 0, 1))
    if "seconds" in given:
        settings["num_frames"] = _frames(given["seconds"], settings)
    return settings


def sent_name(given: Mapping[str, Any], ours: str | None) -> str | None:
    """The name under which a setting of ours was sent: another name for it, or a word that stands for it."""
    if ours is None or ours in given:
        return ours
    aliases = PROMPT_ALIASES if "prompt" in given else ALIASES
    return next((name for name in given if aliases.get(name) == ours or ours in WORDS.get(name, ())), ours)


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are settings of ours, or aliases of them, under our names."""
    aliases = PROMPT_ALIASES if "prompt" in given else ALIASES
    settings: dict[str, Any] = {}
    for name, value in sorted(given.items(), key=lambda item: item[0] in ALIASES):
        if name in WORDS:
            continue
        ours = aliases.get(name, name)
        if ours not in VideoRequest.model_fields:
            known = ", ".join([*VideoRequest.model_fields, *ALIASES, *WORDS])
            raise InvalidRequest(f"there is no setting {name!r}; the settings are {known}", name)
        if ours in settings:
            raise InvalidRequest(f"{name} {value!r} is another name for {ours}, and both are given: drop one", ours)
        settings[ours] = value
    return settings


def _check_said_once(given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for name, meant in WORDS.items():
        if name in given and (other := next((word for word in meant if word in settings), None)):
            raise InvalidRequest(f"{name} {given[name]!r} and {other} are both given: drop one", name)
    if "seconds" in given and "video_length" in given:
        raise InvalidRequest(f"seconds {given['seconds']!r} and video_length are both given: drop one", "seconds")


def _length(value: object) -> tuple[int, str]:
    if value not in _LENGTHS:
        raise InvalidRequest(f"video_length {value!r} is not usable: {' and '.join(_LENGTHS)} are", "video_length")
    return _LENGTHS[str(value)]


def _size(value: object) -> tuple[int, int]:
    found = _SIZE.fullmatch(str(value).strip())
    if found is None:
        raise InvalidRequest(f"size {value!r} is not usable: write width x height, as 1024x576", "size")
    return int(found[1]), int(found[2])


def _number(name: str, value: object, low: float, high: float) -> float:
    try:
        number = float(str(value))
    except ValueError:
        raise InvalidRequest(f"{name} {value!r} is no number; give one from {low:g} to {high:g}", name) from None
    if not low <= number <= high:  # false for NaN, too
        raise InvalidRequest(f"{name} {value!r} is out of range: {low:g} to {high:g}", name)
    return number


def _frames(seconds: object, settings: Mapping[str, Any]) -> int:
    """How many frames last so long at the rate at which they will be played."""
    usual = default_parameters(str(settings["model"]))
    named = settings.get("playback_fps") or settings.get("fps")
    rate = named if named is not None else usual.get("fps", VideoRequest.model_fields["fps"].default)
    try:
        per_second = int(str(rate))
    except ValueError:
        return 1  # the request refuses the rate itself
    if not 1 <= per_second <= 1000:
        return 1  # likewise
    longest = _MOST_FRAMES / per_second
    try:
        wanted = float(str(seconds))
    except ValueError:
        raise InvalidRequest(f"seconds {seconds!r} is no number; give one, as 2", "seconds") from None
    if not 0 <= wanted <= longest + 1 or not 1 <= (frames := round(wanted * per_second)) <= _MOST_FRAMES:
        raise InvalidRequest(
            f"seconds {seconds!r} is out of range: at {per_second} frames a second a video lasts "
            f"{1 / per_second:.2g} to {longest:.3g} seconds, which is {_MOST_FRAMES} frames",
            "seconds",
        )
    return frames
