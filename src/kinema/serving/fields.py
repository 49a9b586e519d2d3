"""Convert the fields of forms and JSON bodies to the parameters of `VideoRequest`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidRequest
from kinema.models.video_size import parse_size
from kinema.serving.multipart import LAST_IMAGE_FIELD
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Names of our parameters in other software.
ALIASES: Mapping[str, str] = {
    "cond_aug": "noise_aug_strength",
    "augmentation_level": "noise_aug_strength",
    "decoding_t": "decode_chunk_size",
    "frames_per_second": "fps",
    "cfg_scale": "max_guidance_scale",
    "guidance_scale": "max_guidance_scale",  # without a prompt
    "steps": "num_inference_steps",
}
# With a prompt: the names in diffusers' text-to-image pipelines.
PROMPT_ALIASES: Mapping[str, str] = {**ALIASES, "guidance_scale": "image_guidance_scale"}
# Fields from which one or two of our parameters are computed.
SHORTHANDS: Mapping[str, tuple[str, ...]] = {
    "size": ("width", "height"),
    "seconds": ("num_frames",),
    "motion_scale": ("motion_bucket_id",),
    "video_length": ("num_frames", "model"),
}
_LENGTHS = {"14_frames_with_svd": (14, "svd"), "25_frames_with_svd_xt": (25, "svd-xt")}


def is_set(value: object) -> bool:
    """Return whether a field has a value: None, an empty string and the word null are none."""
    return value is not None and not (isinstance(value, str) and value.strip() in {"", "null"})


def to_parameters(fields: Mapping[str, Any], default_model: Callable[[], str]) -> dict[str, Any]:
    """Return the parameters that these fields specify, always with `model`; their values are not validated.

    Raises:
        InvalidRequest: a field is unknown, is specified twice, or can't be parsed.
    """
    sent = {name: value for name, value in fields.items() if is_set(value)}
    parameters = _resolve_aliases(sent)
    _check_conflicts(sent, parameters)
    if "video_length" in sent:
        parameters["num_frames"], parameters["model"] = _parse_video_length(sent["video_length"])
    if "model" not in parameters:
        parameters["model"] = default_model()
    if "size" in sent:
        parameters["width"], parameters["height"] = parse_size(str(sent["size"]))
    if "motion_scale" in sent:
        parameters["motion_bucket_id"] = round(255 * _parse_number("motion_scale", sent["motion_scale"], 0, 1))
    if "seconds" in sent:
        parameters["seconds"] = sent["seconds"]
    return parameters


def sent_name(sent: Mapping[str, Any], parameter: str | None) -> str | None:
    """Return the name under which a parameter was sent: its own, an alias or a shorthand."""
    if parameter is None or parameter in sent:
        return parameter
    aliases = PROMPT_ALIASES if "prompt" in sent else ALIASES
    return next(
        (name for name in sent if aliases.get(name) == parameter or parameter in SHORTHANDS.get(name, ())), parameter
    )


def _resolve_aliases(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are parameters or aliases of parameters, under the parameters' names."""
    aliases = PROMPT_ALIASES if "prompt" in sent else ALIASES
    parameters: dict[str, Any] = {}
    for name, value in sorted(sent.items(), key=lambda item: item[0] in ALIASES):
        if name in SHORTHANDS:
            continue
        parameter = aliases.get(name, name)
        if parameter not in VideoRequest.model_fields:
            known = ", ".join([*VideoRequest.model_fields, *ALIASES, *SHORTHANDS, LAST_IMAGE_FIELD])
            raise InvalidRequest(f"unknown parameter {name!r}; the parameters are {known}", name)
        if parameter in parameters:
            raise InvalidRequest(
                f"{name} {value!r} is an alias of {parameter}, and both are sent; remove one", parameter
            )
        parameters[parameter] = value
    return parameters


def _check_conflicts(sent: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    for name, meanings in SHORTHANDS.items():
        if name in sent and (other := next((each for each in meanings if each in parameters), None)):
            raise InvalidRequest(f"{name} {sent[name]!r} and {other} were both sent; remove one", name)
    if "seconds" in sent and "video_length" in sent:
        raise InvalidRequest(f"seconds {sent['seconds']!r} and video_length were both sent; remove one", "seconds")


def _parse_video_length(value: object) -> tuple[int, str]:
    if value not in _LENGTHS:
        raise InvalidRequest(f"video_length {value!r} is invalid; use {' or '.join(_LENGTHS)}", "video_length")
    return _LENGTHS[str(value)]


def _parse_number(name: str, value: object, low: float, high: float) -> float:
    try:
        number = float(str(value))
    except ValueError:
        raise InvalidRequest(f"{name} {value!r} is not a number; use one from {low:g} to {high:g}", name) from None
    if not low <= number <= high:  # also rejects NaN
        raise InvalidRequest(f"{name} {value!r} is out of range; use a number from {low:g} to {high:g}", name)
    return number
