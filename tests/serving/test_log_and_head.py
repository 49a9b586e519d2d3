"""The access log for interrupted uploads and Gradio's polling; responses to HEAD requests."""

import re
import socket
import time

import httpx
import pytest

from kinema.serving import page
from kinema.serving.page.translations.languages import LANGUAGES

SLOW = {"motion_bucket_id": "250", "num_inference_steps": "100", "num_frames": "3"}


def new_log_text(server, before):
    return server.log.read_text()[len(before) :]


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("path", ["/generate", "/v1/videos", "/v1/videos/sync", "/studio/images"])
def test_interrupted_upload_logs_one_line(server, path, kind):
    before = server.log.read_text()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\n\r\n--x\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.sendall(head.encode())
        time.sleep(0.2)
    deadline = time.monotonic() + 20
    while "status=499" not in new_log_text(server, before):
        assert time.monotonic() < deadline, "the request is not logged"
        time.sleep(0.05)
    time.sleep(0.2)
    # Jobs of other tests may still run, and their workers end.
    lines = [
        line for line in new_log_text(server, before).splitlines() if not re.search(r" job video_| worker \d+ ", line)
    ]
    assert len(lines) == 1, lines
    assert f"method=POST,path={path}," in lines[0]


def test_undecodable_content_type_logs_one_line(server):
    before = server.log.read_text()
    response = httpx.post(f"{server.url}/v1/videos", content=b"x", headers=[(b"Content-Type", b"text/\xff\xfe")])
    assert response.status_code == 415
    deadline = time.monotonic() + 20
    while "\n" not in new_log_text(server, before):
        assert time.monotonic() < deadline, "the request is not logged"
        time.sleep(0.05)
    time.sleep(0.2)
    assert len(new_log_text(server, before).splitlines()) <= 2  # the request, and the reason for the rejection
    assert "Traceback" not in new_log_text(server, before)


def test_polling_of_page_is_not_logged(server):
    assert tuple(f"{page.PATH}/{language}/gradio_api/" for language in LANGUAGES) == page.POLLED
    before = server.log.read_text()
    for language in LANGUAGES:
        httpx.post(f"{server.url}/studio/{language}/gradio_api/queue/join", json={"data": []})
        assert httpx.get(f"{server.url}/studio/{language}/").status_code == 200
    deadline = time.monotonic() + 30
    while "path=/studio/ko/," not in new_log_text(server, before):  # logged after the response
        assert time.monotonic() < deadline, new_log_text(server, before)
        time.sleep(0.1)
    assert "gradio_api" not in new_log_text(server, before)


@pytest.mark.parametrize(
    "path",
    ["/", "/livez", "/metrics", "/studio", "/studio/en/", "/v1/models", "/v1/openapi.json", "/v1/videos", "/v1/none"],
)
def test_head_returns_get_headers_without_body(client, path):
    get, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers.get("content-type") == get.headers.get("content-type")


def test_head_of_post_route_returns_405(client):
    assert client.head("/generate").status_code == client.get("/generate").status_code == 405


def test_head_of_video_has_length_and_head_of_stream_ends(client, png):
    done = client.post(
        "/v1/videos/sync", data={"num_frames": "2", "motion_bucket_id": "1"}, files={"image": ("a.png", png)}
    )
    content = f"/v1/videos/{done.headers['x-kinema-job']}/content"
    assert client.head(content).headers["content-length"] == str(len(client.get(content).content))
    running = client.post("/v1/videos", data=SLOW, files={"image": ("a.png", png)}).json()
    try:
        response = client.head(f"/v1/videos/{running['id']}/events")
        assert response.headers["content-type"].startswith("text/event-stream")
    finally:
        client.delete(f"/v1/videos/{running['id']}")
