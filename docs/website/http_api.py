"""The page of the HTTP API, from the server's OpenAPI document."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from docs.website.markdown import table

_TITLES = {"videos": "Videos", "batches": "Batches", "models": "Models"}
_INTRO = """# HTTP API

The routes of `kinema serve`. A running server has this as an OpenAPI document, at `/v1/openapi.json`, and shows it
with Swagger UI at `/`. [The server](../server.md) explains jobs, idempotency keys and priorities, and
[Errors](errors.md) lists the codes.

If the server has API keys, send one as `Authorization: Bearer KEY`. Bodies are JSON or forms; images are sent as a part
of a form, or as a data URL in JSON.
"""


@cache
def document() -> dict[str, Any]:
    """Return the complete OpenAPI document of the server, with /generate."""
    from kinema.serving import openapi
    from kinema.serving.service import StableDiffusionVideo, api

    return openapi.complete(StableDiffusionVideo.openapi_spec.asdict(), api)  # type: ignore[attr-defined]  # no types


def routes() -> list[tuple[str, str, dict[str, Any]]]:
    """Return path, method and operation of every route of Kinema; health checks of BentoML are left out."""
    return [
        (path, method, operation)
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
        if path == "/generate" or path.startswith("/v1/")
    ]


def page() -> str:
    """Return the page: routes by resource, then the fields of requests and responses."""
    groups: dict[str, list[str]] = {"/generate": []}
    summary = []
    for path, method, operation in routes():
        group = _TITLES.get(operation.get("tags", [""])[0], "/generate")
        groups.setdefault(group, []).append(_route(path, method, operation))
        anchor = f"{method}-{path}".translate(str.maketrans("", "", "/{}")).lower()
        summary.append((f"[`{method.upper()} {path}`](#{anchor})", _purpose(operation)))
    sections = "".join(f"## {group}\n\n{''.join(entries)}" for group, entries in groups.items())
    create = _operation("/v1/videos", "post")["requestBody"]["content"]["multipart/form-data"]["schema"]
    names = [
        "VideoObject",
        "VideoList",
        "DeletedVideo",
        "ModelObject",
        "ModelList",
        "WorkerObject",
        "WorkerList",
        "FileObject",
        "FileList",
        "DeletedFile",
        "BatchObject",
        "BatchCounts",
        "BatchErrorList",
        "BatchErrorObject",
        "BatchList",
        "VerifiedFile",
        "CredentialCheck",
        "Ingredient",
        "FoundWatermark",
        "ErrorResponse",
        "ErrorDetail",
    ]
    schemas = document()["components"]["schemas"]
    objects = "".join(
        f"### {name}\n\n{schemas[name].get('description', '')}\n\n{_fields(schemas[name])}\n" for name in names
    )
    example = json.dumps(schemas["VideoObject"]["example"], indent=2)
    return (
        f"{_INTRO}\n{table(('route', 'purpose'), summary)}\n{sections}"
        "## Fields of a request\n\nThe body of `POST /v1/videos`, `POST /v1/videos/sync` and `POST /generate`. Only an "
        "image or a prompt is required. Omitted, empty or null fields use the model's defaults.\n\n"
        f"{_fields(create)}\n## Objects\n\n{objects}A video in progress:\n\n```json\n{example}\n```\n"
    )


def _operation(path: str, method: str) -> dict[str, Any]:
    operation: dict[str, Any] = document()["paths"][path][method]
    return operation


def _purpose(operation: dict[str, Any]) -> str:
    return str(operation.get("description") or operation.get("summary") or "").split("\n\n")[0].replace("\n", " ")


def _route(path: str, method: str, operation: dict[str, Any]) -> str:
    text = f"### {method.upper()} {path}\n\n{operation.get('description') or operation.get('summary')}\n\n"
    parameters = [
        (f"`{p['name']}`", p["in"], _type(p["schema"]), p.get("description", ""))
        for p in operation.get("parameters", [])
        if p["in"] != "path"
    ]
    if parameters:
        text += table(("parameter", "in", "type", "meaning"), parameters) + "\n"
    content = operation.get("requestBody", {}).get("content", {})
    if content:
        own = path not in ("/v1/videos", "/v1/videos/sync", "/generate")
        schema = next(iter(content.values()))["schema"]
        text += f"Body: {' or '.join(f'`{kind}`' for kind in content)}"
        text += f".\n\n{_fields(schema)}\n" if own else ", with the [fields of a request](#fields-of-a-request).\n\n"
    for kind, body in content.items():
        examples = body.get("examples") or ({"": {"value": body["example"]}} if "example" in body else {})
        for example in examples.values():
            value = json.dumps(example["value"], indent=2)
            label = example.get("summary", "Example")
            text += f"{label} (`{kind}`):\n\n```json\n{_shortened(value)}\n```\n\n"
    errors = [str(status) for status in operation["responses"] if str(status) > "4"]
    # FastAPI documents 422, but the server responds with 400.
    codes = ", ".join(status for status in sorted(errors) if status != "422")
    responses = [
        f"`{status}`: {_content(response)}. {response.get('description', '').replace('Successful Response', '')}"
        for status, response in operation["responses"].items()
        if str(status) < "4"
    ]
    return f"{text}Response {'; '.join(responses)}\n\nErrors: {codes} ([meaning](errors.md#http-statuses)).\n\n"


def _shortened(text: str) -> str:
    """Return JSON with long data URLs cut."""
    return "\n".join(f'{line[:70]}…"' if len(line) > 120 else line for line in text.split("\n"))


def _content(response: dict[str, Any]) -> str:
    """Return the body of a response: a link to its object, or its media types."""
    content = response.get("content", {})
    for body in content.values():
        if name := body.get("schema", {}).get("$ref", "").rpartition("/")[2]:
            return f"[{name}](#{name.lower()})"
    return ", ".join(f"`{kind}`" for kind in content)


def _fields(schema: dict[str, Any]) -> str:
    """Return a table of the properties of an object."""
    rows = [
        (f"`{name}`", _type(field), _range(field), field.get("description", ""))
        for name, field in _resolved(schema)["properties"].items()
    ]
    return table(("field", "type", "range", "meaning"), rows)


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        found: dict[str, Any] = document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found
    return schema


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a value; objects are links."""
    if "anyOf" in schema:
        return " or ".join(_type(kind) for kind in schema["anyOf"])
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if name != "VideoErrorDetail" else "object with `code` and `message`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return "file" if schema.get("format") == "binary" else str(schema.get("type", "any"))


def _range(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return ""
    return f"{low} to {high}" if high is not None else f"at least {low}"
