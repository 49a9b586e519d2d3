"""Every error has one shape, wherever it arises, and none holds a path, a statement or the database's address."""

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from kinema import errors
from kinema.errors import (
    AllowanceUsedUp,
    InsufficientDisk,
    InvalidImage,
    InvalidRequest,
    KinemaError,
    QueueFull,
    QueueUnavailable,
)
from kinema.jobs import Failure
from kinema.jobs.job import OWN_FAILURES
from kinema.messages import Message
from kinema.serving import schemas
from kinema.serving.http_errors import ErrorResponseMiddleware
from kinema.serving.page import form_html
from kinema.serving.page.translations.english import ENGLISH
from kinema.serving.page.translations.korean import KOREAN
from kinema.serving.rate_limits import Pins

SECRET = "/srv/kinema/jobs.sqlite3: SELECT * FROM kinema_jobs (postgresql://kinema:password@db.internal:5432/kinema)"
# What the client itself gave is told in full, and these are made of nothing else.
OF_CLIENTS = {
    "invalid_request", "request_too_large", "invalid_image", "model_gated", "insufficient_memory", "generation_failed",
    "queue_full", "allowance_used_up", "job_not_found", "job_unfinished", "key_reused",
}  # fmt: skip


def is_private(text):
    return any(part in text for part in ("/srv", "sqlite3", "SELECT", "kinema_jobs", "postgresql", "password", "5432"))


def kinds(kind=KinemaError):
    """Those of Kinema's errors that are in their module, whatever other modules are imported."""
    if kind.__module__ == errors.__name__:
        yield kind
    for other in kind.__subclasses__():
        yield from kinds(other)


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.code)
def test_a_refusal_tells_what_the_client_can_mend_and_nothing_of_the_server(kind, caplog):
    error = kind(SECRET, 5.0) if kind in (QueueFull, AllowanceUsedUp) else kind(SECRET)
    _, body, _ = schemas.refusal(error)
    told_in_full = kind.code in OF_CLIENTS
    assert is_private(body["error"]["message"]) is told_in_full
    assert (SECRET in caplog.text) is not told_in_full  # the log has what the client has not
    for words in (ENGLISH, KOREAN):
        assert is_private(form_html.why(error, words)) is told_in_full


@pytest.mark.parametrize(
    "code", [*(kind.code for kind in kinds() if kind.__module__ == errors.__name__), *OWN_FAILURES], ids=str
)
def test_a_jobs_failure_says_nothing_of_the_server(code):
    told_in_full = code in (OF_CLIENTS - {"invalid_image"}) | {"cancelled", "worker_hung", "interrupted"}
    _, body, _ = schemas.failure(Failure(code, SECRET))
    assert is_private(body["error"]["message"]) is told_in_full


def test_a_sentence_is_told_without_its_folder_and_without_a_librarys_words():
    said = Message("x", "{free} GB are free in {folder}", free=1, folder=Path("/srv/kinema"))
    assert schemas.refusal(InsufficientDisk(said))[1]["error"]["message"] == "1 GB are free in the data folder"
    said = Message("y", "no answer: {reason}", reason=SECRET)
    for error in (QueueUnavailable(said), InvalidRequest(said)):
        assert schemas.refusal(error)[1]["error"]["message"] == "no answer: the server's log says why"


def test_a_caller_that_had_its_share_reads_which_and_when_there_is_more():
    pins, scope = Pins(2), {"type": "http"}
    pins.check(scope)
    pins.check(scope)
    with pytest.raises(AllowanceUsedUp) as refused:
        pins.check(scope)
    status, body, headers = schemas.refusal(refused.value)
    assert (status, body["error"]["code"], body["error"]["type"]) == (429, "allowance_used_up", "rate_limit_error")
    assert body["error"]["message"].startswith("one caller may pin 2 videos a day; try again in ")
    assert 43_000 < int(headers["Retry-After"]) <= 43_200
    assert form_html.why(refused.value, KOREAN).startswith("하루에 영상을 2개까지만 고정할 수 있습니다.")


def test_what_is_wrong_with_an_image_is_said():
    said = Message("damaged", "the image is damaged ({reason})", reason="its end is missing")
    assert schemas.refusal(InvalidImage(said))[1]["error"]["message"] == "the image is damaged (its end is missing)"


def fails(_):
    raise RuntimeError(SECRET)


async def streams(_):
    async def body():
        yield b"one "
        yield b"two"

    return StreamingResponse(body(), 200)


ROUTES = [
    Route("/plain", lambda _: PlainTextResponse(SECRET, 500, headers={"X-Kept": "yes"})),
    Route("/teapot", lambda _: PlainTextResponse("no", 418)),
    Route("/defect", fails),
    Route("/stream", streams),
]


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "words"),
    [
        ("GET", "/plain", 500, "internal_error", "the server's log"),
        ("GET", "/defect", 500, "internal_error", "the server's log"),
        ("GET", "/nowhere", 404, "not_found", "nothing at '/nowhere'"),
        ("POST", "/plain", 405, "method_not_allowed", "/plain does not take POST; it takes"),
        ("GET", "/teapot", 418, "invalid_request", "teapot"),
    ],
)
def test_an_error_of_another_shape_goes_out_in_ours(method, path, status, code, words):
    async def ask():
        transport = httpx.ASGITransport(ErrorResponseMiddleware(Starlette(routes=ROUTES)), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            assert (await client.get("/stream")).text == "one two"
            return await client.request(method, path)

    answer = asyncio.run(ask())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], words in error["message"]) == (status, code, True), error
    assert error.keys() == {"code", "message", "param", "type"}
    assert answer.headers.get("x-kept") == ("yes" if path == "/plain" and method == "GET" else None)
    assert not is_private(answer.text)


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
def test_every_face_answers_errors_in_one_shape(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"code", "message", "param", "type"}


def test_a_part_of_a_file_that_is_not_there_is_refused_in_that_shape(client, png):
    made = client.post("/v1/videos/sync", data={"motion_bucket_id": "1"}, files={"image": ("a.png", png)})
    path = f"/v1/videos/{made.headers['x-kinema-job']}/content"
    answer = client.get(path, headers={"Range": "bytes=999999999-"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"].startswith("bytes */")


def test_a_defects_words_are_in_the_log_and_not_in_the_answer(server, client, png):
    answer = client.post("/v1/videos/sync", data={"model": "defect"}, files={"image": ("a.png", png)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    video = client.get(f"/v1/videos/{answer.headers['x-kinema-job']}")
    assert "a bug" not in answer.text + video.text
    assert "RuntimeError: a bug" in server.log.read_text()
