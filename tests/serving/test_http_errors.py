"""All error responses have one format, without paths, SQL statements and the database's URL."""

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from kinema import errors
from kinema.errors import (
    InsufficientDisk,
    InvalidImage,
    InvalidRequest,
    KinemaError,
    QueueFull,
    QueueUnavailable,
    QuotaExceeded,
)
from kinema.jobs import Failure
from kinema.jobs.job import QUEUE_FAILURE_CODES
from kinema.messages import Message
from kinema.serving import schemas
from kinema.serving.http_errors import ErrorResponseMiddleware
from kinema.serving.page import form_html
from kinema.serving.page.translations.english import ENGLISH
from kinema.serving.page.translations.korean import KOREAN
from kinema.serving.rate_limits import PinQuota

SECRET = "/srv/kinema/jobs.sqlite3: SELECT * FROM kinema_jobs (postgresql://kinema:password@db.internal:5432/kinema)"
# Messages of these errors contain only what the client sent, so they are not replaced.
CLIENT_ERRORS = {
    "content_refused", "invalid_request", "request_too_large", "invalid_image", "model_gated", "insufficient_memory",
    "generation_failed", "queue_full", "quota_exceeded", "job_not_found", "batch_not_found", "file_not_found",
    "job_unfinished", "file_in_use", "idempotency_key_reused",
}  # fmt: skip


def is_private(text):
    return any(part in text for part in ("/srv", "sqlite3", "SELECT", "kinema_jobs", "postgresql", "password", "5432"))


def error_classes(kind=KinemaError):
    """Yield the error classes of `kinema.errors`, not those of other modules."""
    if kind.__module__ == errors.__name__:
        yield kind
    for other in kind.__subclasses__():
        yield from error_classes(other)


@pytest.mark.parametrize("kind", list(error_classes()), ids=lambda kind: kind.code)
def test_error_response_hides_server_details(kind, caplog):
    error = kind(SECRET, 5.0) if kind in (QueueFull, QuotaExceeded) else kind(SECRET)
    _, body, _ = schemas.error_response(error)
    is_complete = kind.code in CLIENT_ERRORS
    assert is_private(body["error"]["message"]) is is_complete
    assert (SECRET in caplog.text) is not is_complete  # the log contains what the client does not get
    for words in (ENGLISH, KOREAN):
        assert is_private(form_html.error_html(error, words)) is is_complete


@pytest.mark.parametrize(
    "code",
    [*(kind.code for kind in error_classes() if kind.__module__ == errors.__name__), *QUEUE_FAILURE_CODES],
    ids=str,
)
def test_job_failure_hides_server_details(code):
    is_complete = code in (CLIENT_ERRORS - {"invalid_image"}) | {"cancelled", "worker_hung", "interrupted"}
    _, body, _ = schemas.failure_response(Failure(code, SECRET))
    assert is_private(body["error"]["message"]) is is_complete


def test_message_hides_path_and_reason():
    message = Message("x", "{free} GB is free in {folder}", free=1, folder=Path("/srv/kinema"))
    assert schemas.error_response(InsufficientDisk(message))[1]["error"]["message"] == "1 GB is free in the data folder"
    message = Message("y", "no response: {reason}", reason=SECRET)
    for error in (QueueUnavailable(message), InvalidRequest(message)):
        assert schemas.error_response(error)[1]["error"]["message"] == "no response: see the server's log"


def test_used_up_quota_returns_429_with_retry_after():
    pins, scope = PinQuota(2), {"type": "http"}
    pins.check(scope)
    pins.check(scope)
    with pytest.raises(QuotaExceeded) as caught:
        pins.check(scope)
    status, body, headers = schemas.error_response(caught.value)
    assert (status, body["error"]["code"], body["error"]["type"]) == (429, "quota_exceeded", "rate_limit_error")
    assert body["error"]["message"].startswith("each caller can pin 2 videos per day; try again in ")
    assert 43_000 < int(headers["Retry-After"]) <= 43_200
    assert form_html.error_html(caught.value, KOREAN).startswith(
        "사용자마다 하루에 영상을 2개까지만 고정할 수 있습니다."
    )


def test_invalid_image_message_keeps_reason():
    message = Message("damaged", "the image is damaged ({reason})", reason="its end is missing")
    assert (
        schemas.error_response(InvalidImage(message))[1]["error"]["message"]
        == "the image is damaged (its end is missing)"
    )


def fail(_):
    raise RuntimeError(SECRET)


async def stream(_):
    async def body():
        yield b"one "
        yield b"two"

    return StreamingResponse(body(), 200)


ROUTES = [
    Route("/plain", lambda _: PlainTextResponse(SECRET, 500, headers={"X-Kept": "yes"})),
    Route("/teapot", lambda _: PlainTextResponse("no", 418)),
    Route("/defect", fail),
    Route("/stream", stream),
]


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "words"),
    [
        ("GET", "/plain", 500, "internal_error", "the server's log"),
        ("GET", "/defect", 500, "internal_error", "the server's log"),
        ("GET", "/nowhere", 404, "not_found", "'/nowhere' does not exist"),
        ("POST", "/plain", 405, "method_not_allowed", "/plain does not support POST; use"),
        ("GET", "/teapot", 418, "invalid_request", "teapot"),
    ],
)
def test_foreign_error_is_rewritten_to_standard_format(method, path, status, code, words):
    async def ask():
        transport = httpx.ASGITransport(ErrorResponseMiddleware(Starlette(routes=ROUTES)), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            assert (await client.get("/stream")).text == "one two"
            return await client.request(method, path)

    response = asyncio.run(ask())
    error = response.json()["error"]
    assert (response.status_code, error["code"], words in error["message"]) == (status, code, True), error
    assert error.keys() == {"code", "message", "param", "type"}
    assert response.headers.get("x-kept") == ("yes" if path == "/plain" and method == "GET" else None)
    assert not is_private(response.text)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404), ("GET", "/v1/nowhere", 404), ("GET", "/v1/%0a", 404), ("GET", "/generate", 405),
        ("PUT", "/v1/videos", 405), ("DELETE", "/readyz", 405), ("GET", "/static_content/none.js", 404),
        ("GET", "/studio/none", 404), ("GET", "/studio/static/none.css", 404),
        ("GET", "/studio/en/gradio_api/upload", 404),
        ("POST", "/studio/en/gradio_api/queue/join", 400), ("POST", "/studio/images", 422),
        ("GET", f"/studio/jobs/video_{'0' * 32}/video.mp4", 404), ("GET", "/studio/images/x?width=288&height=160", 404),
        ("GET", "/studio/images/x", 400),
    ],
)  # fmt: skip
def test_all_routes_return_errors_in_standard_format(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"].keys() == {"code", "message", "param", "type"}


def test_unsatisfiable_range_returns_standard_error(client, png):
    created = client.post("/v1/videos/sync", data={"motion_bucket_id": "1"}, files={"image": ("a.png", png)})
    path = f"/v1/videos/{created.headers['x-kinema-job']}/content"
    response = client.get(path, headers={"Range": "bytes=999999999-"})
    assert (response.status_code, response.json()["error"]["code"]) == (416, "range_not_satisfiable")
    assert response.headers["content-range"].startswith("bytes */")


def test_internal_error_is_logged_and_hidden_from_client(server, client, png):
    response = client.post("/v1/videos/sync", data={"model": "defect"}, files={"image": ("a.png", png)})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    video = client.get(f"/v1/videos/{response.headers['x-kinema-job']}")
    assert "a bug" not in response.text + video.text
    assert "RuntimeError: a bug" in server.log.read_text()
