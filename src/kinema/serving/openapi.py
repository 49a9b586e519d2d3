"""The request bodies and error responses of the OpenAPI document."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from kinema.serving.fields import ALIASES, PROMPT_ALIASES
from kinema.serving.multipart import LAST_IMAGE_FIELD
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

WEBHOOK_URL = {
    "type": "string",
    "format": "uri",
    "maxLength": 2000,
    "description": "URL of a host in KINEMA_WEBHOOK_HOSTS, to which the server sends a message when the video is "
    "completed or has failed.",
}


def _parameters() -> dict[str, Any]:
    """Return the schemas of all parameters and their aliases; each is optional."""
    fields = VideoRequest.model_json_schema()["properties"]
    parameters: dict[str, Any] = {}
    for name, schema in fields.items():
        field = {key: value for key, value in schema.items() if key not in ("title", "default")}
        if "anyOf" in field:
            field |= next(kind for kind in field.pop("anyOf") if kind.get("type") != "null")
        parameters[name] = field
    for alias, name in ALIASES.items():
        prompt_name = PROMPT_ALIASES[alias]
        with_prompt = "" if prompt_name == name else f"; with a prompt and no image, of {prompt_name}"
        parameters[alias] = parameters[name] | {"description": f"Alias of {name}{with_prompt}."}
    parameters["guidance_scale"] |= {"minimum": parameters["image_guidance_scale"]["minimum"], "maximum": 50}
    return parameters


def _other_fields() -> dict[str, Any]:
    return {
        "size": {
            "type": "string",
            "pattern": r"^\d{2,4}x\d{2,4}$",
            "description": "Width x height, such as 1024x576. Unset: follows the image.",
        },
        "seconds": {"type": "string", "description": "Duration of the video; determines num_frames.", "example": "2"},
        "extend": {
            "type": "string",
            "description": "Id of a completed video to continue, in place of an image and a prompt; seconds or "
            "num_frames is what is added.",
        },
        "motion_scale": {"type": "number", "minimum": 0, "maximum": 1, "description": "motion_bucket_id / 255."},
        "video_length": {"type": "string", "enum": ["14_frames_with_svd", "25_frames_with_svd_xt"]},
        "title": {"type": "string", "description": "Title of the video; default: the prompt."},
        "pinned": {"type": "boolean", "description": "Keep the video until it is deleted."},
        "priority": {
            "type": "integer",
            "minimum": -1000,
            "maximum": 1000,
            "description": "Each unit moves the job ahead of jobs submitted up to one minute earlier.",
        },
        "webhook_url": WEBHOOK_URL,
        "keep": {
            "type": "boolean",
            "description": "For calls that wait for the video: continue the job if the client disconnects.",
        },
    }


def _image_file(text: str) -> dict[str, Any]:
    """Return the schema of an image in a form."""
    return {"type": "string", "format": "binary", "description": f"{text} JPEG, PNG, WebP, HEIC or AVIF."}


def _image_reference(text: str) -> dict[str, Any]:
    """Return the schema of an image in JSON."""
    url = {"type": "string", "description": "A data:image/…;base64, URL.", "example": GRADIENT}
    properties = {"image_url": url}
    required = ["image_url"]
    kind = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return kind | {"description": text}


def create_body() -> dict[str, Any]:
    """Return the `requestBody` of routes that submit a video job."""
    shared = _parameters() | _other_fields()
    images = {
        "input_reference": "Image to animate. With an image, the prompt is only the title.",
        LAST_IMAGE_FIELD: "Image at which the video ends. Denoising takes twice as long.",
    }
    files = {name: _image_file(text) for name, text in images.items()}
    references = {name: _image_reference(text) for name, text in images.items()}
    image = {
        "summary": "From an image",
        "value": {"input_reference": {"image_url": GRADIENT}, "model": "pocket", "seed": 42},
    }
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object", "properties": shared | references},
                    "examples": {"prompt": {"summary": "From a prompt", "value": EXAMPLE}, "image": image},
                },
                "multipart/form-data": {"schema": {"type": "object", "properties": shared | files}},
            },
        }
    }


def update_body() -> dict[str, Any]:
    """Return the `requestBody` of the route that updates a video."""
    other_fields = _other_fields()
    schema = {
        "type": "object",
        "properties": {name: other_fields[name] for name in ("title", "pinned")},
        "minProperties": 1,
        "additionalProperties": False,
    }
    json = {"schema": schema, "example": {"title": "Lift-off", "pinned": True}}
    content = {"application/json": json, "multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def json_body(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the `requestBody` of a route that accepts JSON."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def upload_body() -> dict[str, Any]:
    """Return the `requestBody` of the route that uploads a file."""
    properties = {
        "purpose": {"type": "string", "enum": ["batch"]},
        "file": {"type": "string", "format": "binary", "description": "Requests in JSON Lines format, one per line."},
    }
    required = ["purpose", "file"]
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def range_error() -> dict[int | str, dict[str, Any]]:
    """Return the error response of a route that supports range requests."""
    return {416: {"model": ErrorResponse, "description": "The range is not satisfiable."}}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route, for its `responses`."""
    every = sorted({*statuses, 401, 403, 500, 503})
    return {status: {"model": ErrorResponse, "description": ERROR_RESPONSES[status]} for status in every}


def file_response(media_types: str, description: str) -> dict[int | str, dict[str, Any]]:
    """Return the schema of a response that is a file; `media_types` is separated by spaces."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"content": dict.fromkeys(media_types.split(), schema), "description": description}}


TAGS = {
    "generate": "An image in, the video out, in one call.",
    "videos": "Jobs: submit, follow, download, cancel and delete.",
    "batches": "Many videos by one file of requests.",
    "verify": "What a video file says about itself, and what of it can be believed.",
    "models": "The models that this server offers.",
    "operation": "Health checks and metrics.",
}
OPERATION = {
    "/livez": ("Check Process", "Return 200 while the server process runs. Needs no API key."),
    "/readyz": (
        "Check Readiness",
        "Return 200 when the server accepts jobs and can sign videos, else 503 and the reason. Needs no API key.",
    ),
    "/metrics": ("Get Metrics", "Return metrics in the text format of Prometheus."),
}


def complete(spec: dict[str, Any], app: FastAPI) -> dict[str, Any]:
    """Complete BentoML's document: title, tags, descriptions, and the actual error responses of /generate."""
    spec["info"] = {"title": app.title, "version": app.version, "description": app.description}
    spec["tags"] = [{"name": name, "description": description} for name, description in TAGS.items()]
    del spec["paths"]["/healthz"]  # deprecated, and the same as /livez
    for path, (summary, description) in OPERATION.items():
        spec["paths"][path]["get"] |= {"tags": ["operation"], "summary": summary, "description": description}
    schema = {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}
    generate = spec["paths"]["/generate"]["post"]
    generate |= {"tags": ["generate"], "summary": "Generate Video"}
    generate["description"] = inspect.cleandoc(generate["description"])  # Markdown would show indented text as code
    generate["responses"] = {200: generate["responses"][200]} | {
        status: {"description": response["description"], "content": {"application/json": schema}}
        for status, response in error_responses(400, 404, 409, 413, 415, 429, 507).items()
    }
    for name in ("InvalidArgument", "NotFound", "InternalServerError"):  # BentoML's error formats, which are never sent
        spec["components"]["schemas"].pop(name, None)
    return spec
