"""What the OpenAPI document says of a request's body: the fields of `VideoRequest`, and what else is understood."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from kinema.serving.fields import ALIASES, PROMPT_ALIASES
from kinema.serving.schemas import ERROR_RESPONSES, ErrorResponse
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from fastapi import FastAPI

GRADIENT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAgBAMAAACBVGfHAAAAGFBMVEXs7OzI"
    "yMikpKSEhIRkZGREREQoKCgMDAyCCnnwAAAAJElE"
    "QVR42mMsZ0AFTAyEBFjek6yFGmZQw9pB6w5GQcrNoAkAAPYzBXKfguWxAAAAAElFTkSuQmCC"
)
EXAMPLE = {
    "prompt": "a red hot-air balloon over a snowy mountain at sunset",
    "model": "pocket",
    "seed": 42,
    "num_inference_steps": 4,
}


def _settings() -> dict[str, Any]:
    """Each setting, optional, as a form or JSON may bring it."""
    fields = VideoRequest.model_json_schema()["properties"]
    settings: dict[str, Any] = {}
    for name, schema in fields.items():
        plain = {key: value for key, value in schema.items() if key not in ("title", "default")}
        if "anyOf" in plain:
            plain |= next(kind for kind in plain.pop("anyOf") if kind.get("type") != "null")
        settings[name] = plain
    for other, ours in ALIASES.items():
        drawn = PROMPT_ALIASES[other]
        with_prompt = "" if drawn == ours else f"; where a prompt draws the image, for {drawn}"
        settings[other] = settings[ours] | {"description": f"Another name for {ours}{with_prompt}."}
    settings["guidance_scale"] |= {"minimum": settings["image_guidance_scale"]["minimum"], "maximum": 50}
    return settings


def _others() -> dict[str, Any]:
    return {
        "size": {"type": "string", "pattern": r"^\d{2,4}x\d{2,4}$", "description": "Width x height, as 1024x576."},
        "seconds": {"type": "string", "description": "How long it lasts; it decides num_frames.", "example": "2"},
        "motion_scale": {"type": "number", "minimum": 0, "maximum": 1, "description": "motion_bucket_id / 255."},
        "video_length": {"type": "string", "enum": ["14_frames_with_svd", "25_frames_with_svd_xt"]},
        "title": {"type": "string", "description": "What it will be known by; else the prompt."},
        "pinned": {"type": "boolean", "description": "Never to expire."},
        "priority": {
            "type": "integer",
            "minimum": -1000,
            "maximum": 1000,
            "description": "Each step puts it ahead of those that came up to a minute before it.",
        },
        "keep": {
            "type": "boolean",
            "description": "Where the call waits for the video: go on though the client is gone.",
        },
    }


def body() -> dict[str, Any]:
    """The `requestBody` of whatever makes a video."""
    shared = _settings() | _others()
    file = {"type": "string", "format": "binary", "description": "JPEG, PNG or WebP; it drives the video."}
    address = {
        "type": "object",
        "properties": {
            "image_url": {"type": "string", "description": "A data:image/…;base64, URL.", "example": GRADIENT}
        },
        "required": ["image_url"],
        "additionalProperties": False,
        "description": "The still that drives the video; with one, the prompt is only its title.",
    }
    image = {"summary": "A still", "value": {"input_reference": {"image_url": GRADIENT}, "model": "pocket", "seed": 42}}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object", "properties": shared | {"input_reference": address}},
                    "examples": {"prompt": {"summary": "A sentence", "value": EXAMPLE}, "image": image},
                },
                "multipart/form-data": {"schema": {"type": "object", "properties": shared | {"input_reference": file}}},
            },
        }
    }


def change_body() -> dict[str, Any]:
    """The `requestBody` of what changes a video that is there."""
    others = _others()
    schema = {
        "type": "object",
        "properties": {name: others[name] for name in ("title", "pinned")},
        "minProperties": 1,
        "additionalProperties": False,
    }
    json = {"schema": schema, "example": {"title": "Lift-off", "pinned": True}}
    content = {"application/json": json, "multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers that are errors, for a route's `responses`."""
    every = sorted({*statuses, 401, 403, 500, 503})
    return {status: {"model": ErrorResponse, "description": ERROR_RESPONSES[status]} for status in every}


def file(kind: str, description: str) -> dict[int | str, dict[str, Any]]:
    """An answer that is a file."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"content": dict.fromkeys(kind.split(), schema), "description": description}}


def whole(spec: dict[str, Any], app: FastAPI) -> dict[str, Any]:
    """BentoML's document in our words: what this is, and the errors of /generate as they are."""
    spec["info"] = {"title": app.title, "version": app.version, "description": app.description}
    schema = {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}
    generate = spec["paths"]["/generate"]["post"]
    generate["description"] = inspect.cleandoc(generate["description"])  # an indented text would be code
    generate["responses"] = {200: generate["responses"][200]} | {
        status: {"description": answer["description"], "content": {"application/json": schema}}
        for status, answer in errors(400, 404, 409, 413, 415, 429, 507).items()
    }
    for name in ("InvalidArgument", "NotFound", "InternalServerError"):  # BentoML's own shapes, which nothing answers
        spec["components"]["schemas"].pop(name, None)
    return spec
